{{/*
What every Airflow process has. Their parts name in `uses` the database that their init containers log in to, as Levada's commands do,
and the pipelines where they read the DAGs.
*/}}
{{- define "batch.airflow.secret" -}}
{{- include "lib.secret" (dict "root" . "existing" .Values.airflow.existingSecret "name" "airflow") -}}
{{- end -}}

{{- define "batch.airflow.config" -}}
{{- $airflow := .Values.airflow -}}
{{- $service := include "lib.name" (dict "root" . "name" "airflow") -}}
{{- $sections := dict
      "core" (dict
        "executor" "LocalExecutor"
        "parallelism" "4"
        "load_examples" "False"
        "dags_folder" "/opt/airflow/dags"
        "dags_are_paused_at_creation" "False"
        "execution_api_server_url" (printf "http://%s:8080/execution/" $service)
        "simple_auth_manager_passwords_file" "/opt/airflow/auth/passwords.json"
        "hostname_callable" "airflow.utils.net.get_host_ip_address")
      "database" (dict
        "sql_alchemy_conn" (include "lib.postgres.url" (dict "root" . "role" "airflow" "driver" "psycopg2")))
      "api" (dict
        "instance_name" "Levada")
      "api_auth" (dict
        "jwt_issuer" (printf "%s.%s" $service .Release.Namespace))
      "scheduler" (dict
        "enable_health_check" "True"
        "task_instance_heartbeat_timeout" "60")
      "dag_processor" (dict
        "parsing_processes" "1")
      "logging" (dict
        "base_log_folder" "/opt/airflow/logs"
        "json_logs" "True") -}}
{{- with include "lib.publicUrl" (dict "values" $airflow.api) -}}
{{- $_ := set $sections.api "base_url" . -}}
{{- end -}}
{{- range $section, $settings := $airflow.config -}}
{{- $all := get $sections $section | default dict -}}
{{- range $key, $value := $settings -}}
{{- $_ := set $all $key (toString $value) -}}
{{- end -}}
{{- $_ := set $sections $section $all -}}
{{- end -}}
{{- $lines := list -}}
{{- range $section, $settings := $sections -}}
{{- $lines = append $lines (printf "[%s]" $section) -}}
{{- range $key, $value := $settings -}}
{{- $lines = append $lines (printf "%s = %s" $key (replace "%" "%%" $value)) -}}
{{- end -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{/* Environment of every Airflow process, as YAML; takes root and component. Secrets that files cannot carry are here. */}}
{{- define "batch.airflow.env" -}}
{{- $secret := include "batch.airflow.secret" .root -}}
# Airflow asks for a user's name, which a bare uid does not have.
USER: airflow
AIRFLOW_HOME: /opt/airflow
AIRFLOW_CONFIG: /etc/airflow/airflow.cfg
AIRFLOW__CORE__FERNET_KEY:
  secretKeyRef: {name: {{ $secret }}, key: fernet-key}
AIRFLOW__API__SECRET_KEY:
  secretKeyRef: {name: {{ $secret }}, key: api-secret-key}
AIRFLOW__API_AUTH__JWT_SECRET:
  secretKeyRef: {name: {{ $secret }}, key: jwt-secret}
# Read before the next one, which refers to it: the list is sorted.
AIRFLOW_ADMIN:
  secretKeyRef: {name: {{ $secret }}, key: admin-username}
AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS: $(AIRFLOW_ADMIN):admin
{{ include "lib.postgres.env" (dict "root" .root "role" "airflow") }}
{{- end -}}

{{- define "batch.airflow.mounts" -}}
{{ include "lib.mounts" (set (omit . "uses") "uses" (dict "postgresCa" true "pipelines" (.uses.pipelines | default ""))) }}
- {name: config, mountPath: /etc/airflow, readOnly: true}
- {name: logs, mountPath: /opt/airflow/logs}
{{- end -}}

{{- define "batch.airflow.volumes" -}}
{{ include "lib.volumes" . }}
- name: config
  configMap:
    name: {{ include "lib.name" (dict "root" .root "name" "airflow") }}
- name: logs
  emptyDir: {}
{{- end -}}

{{/* Init containers of a process that needs the schema of this Airflow: first the database, then its migrations. */}}
{{- define "batch.airflow.wait" -}}
{{ include "lib.wait" (dict "part" (set (omit . "uses") "uses" (dict "postgres" "airflow")) "targets" (list "postgres")) }}
- name: wait-for-schema
  command: [airflow, db, check-migrations, --migration-wait-timeout=900]
  {{- include "lib.container" . | nindent 2 }}
  env:
    {{- include "batch.airflow.envList" . | nindent 4 }}
  volumeMounts:
    {{- include "batch.airflow.mounts" . | nindent 4 }}
{{- end -}}

{{- define "batch.airflow.envList" -}}
{{- $uses := dict -}}
{{- with .uses.pipelines }}{{ $_ := set $uses "pipelines" . }}{{ end -}}
{{- include "lib.env" (dict "part" (set (omit . "uses") "uses" $uses) "env" (include "batch.airflow.env" . | fromYaml)) -}}
{{- end -}}
