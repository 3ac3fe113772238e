{{/*
What a part needs of the line, declared once in part.uses, from which environment, mounts and volumes follow:
  kafka          the client it is: collector, sink, predictor, admin
  kafkaUsers     the clients that it makes
  postgres       the database whose owner it is: lake, airflow, mlflow; or admin
  postgresRoles  the databases whose owners it makes
  postgresCa     true where a program other than Levada's talks to PostgreSQL
  s3, mlflow, gate   true
  apiKeys        the Secret with keys.json
  pepper         the Secret with pepper
  secrets        what nothing else uses: [{secret, path, keys, as}], as lib.secretSource takes them
  pipelines      "*" for every declaration, or the name of one
Credentials are files below /etc/levada/credentials.
*/}}

{{/* A list of environment variables; takes part and env ({name: value or valueFrom}). extraEnv wins over env, env over what follows from uses. */}}
{{- define "lib.env" -}}
{{- $all := dict "HOME" "/tmp" -}}
{{- range $source := list (include "lib.usesEnv" .part | fromYaml) .env .part.values.extraEnv -}}
{{- range $name, $value := $source -}}
{{- $_ := set $all $name $value -}}
{{- end -}}
{{- end -}}
{{- $list := list -}}
{{- range $name, $value := $all -}}
{{- if kindIs "map" $value -}}
{{- $list = append $list (dict "name" $name "valueFrom" $value) -}}
{{- else -}}
{{- $list = append $list (dict "name" $name "value" (toString $value)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $list -}}
{{- end -}}

{{- define "lib.usesEnv" -}}
{{- $root := .root -}}
{{- $global := $root.Values.global -}}
{{- $uses := .uses | default dict -}}
{{- with $uses.kafka }}
LEVADA_KAFKA__BOOTSTRAP: {{ include "lib.kafka.bootstrap" $root }}
LEVADA_KAFKA__CREDENTIALS: /etc/levada/credentials/kafka
LEVADA_KAFKA__PROTOCOL: {{ include "lib.kafka.protocol" $root }}
{{- if $global.kafka.external }}
LEVADA_KAFKA__MECHANISM: {{ $global.kafka.mechanism }}
{{- else }}
{{- /* The bundled Kafka's admin makes the SCRAM users, so it cannot be one itself. */}}
LEVADA_KAFKA__MECHANISM: {{ eq . "admin" | ternary "PLAIN" "SCRAM-SHA-512" }}
{{- end }}
{{- if include "lib.kafka.ca" $root }}
LEVADA_KAFKA__CA: /etc/levada/credentials/ca/kafka.crt
{{- end }}
{{- end }}
{{- with $uses.postgres }}
LEVADA_POSTGRES__HOST: {{ include "lib.postgres.host" $root }}
LEVADA_POSTGRES__PORT: {{ include "lib.postgres.port" $root | quote }}
LEVADA_POSTGRES__SSLMODE: {{ include "lib.postgres.sslmode" $root }}
LEVADA_POSTGRES__DATABASE: {{ include "lib.postgres.database" (dict "root" $root "role" .) }}
LEVADA_POSTGRES__CREDENTIALS: /etc/levada/credentials/postgres
{{- if include "lib.postgres.ca" $root }}
PGSSLROOTCERT: /etc/levada/credentials/ca/postgres.crt
{{- end }}
{{- end }}
{{- if $uses.s3 }}
{{- with include "lib.s3.endpoint" $root }}
LEVADA_S3__ENDPOINT: {{ . }}
{{- end }}
LEVADA_S3__REGION: {{ $global.s3.region }}
LEVADA_S3__PATH_STYLE: {{ include "lib.s3.pathStyle" $root | quote }}
LEVADA_S3__BUCKET_LAKE: {{ $global.s3.buckets.lake }}
{{- if include "lib.s3.secret" $root }}
LEVADA_S3__CREDENTIALS: /etc/levada/credentials/s3
{{- end }}
{{- end }}
{{- if $uses.mlflow }}
LEVADA_MLFLOW__URI: {{ include "lib.mlflow.uri" $root }}
{{- end }}
{{- if $uses.gate }}
LEVADA_GATE_KEY_FILE: /etc/levada/credentials/gate/key
{{- end }}
{{- if $uses.apiKeys }}
LEVADA_COLLECTOR__API_KEYS_FILE: /etc/levada/credentials/api-keys/keys.json
{{- end }}
{{- if $uses.pepper }}
LEVADA_COLLECTOR__PEPPER_FILE: /etc/levada/credentials/pepper/pepper
{{- end }}
{{- with $uses.pipelines }}
LEVADA_PIPELINES: /etc/levada/pipelines
{{- if ne . "*" }}
LEVADA_PIPELINE: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "lib.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "lib.credentials" . }}
- name: credentials
  mountPath: /etc/levada/credentials
  readOnly: true
{{- end }}
{{- if (.uses | default dict).pipelines }}
- name: pipelines
  mountPath: /etc/levada/pipelines
  readOnly: true
{{- end }}
{{- range $name, $extra := .values.extraVolumes }}
- name: extra-{{ $name }}
  mountPath: {{ $extra.mountPath }}
{{- end }}
{{- end -}}

{{- define "lib.volumes" -}}
- name: tmp
  emptyDir: {}
{{- with include "lib.credentials" . }}
- name: credentials
  projected:
    defaultMode: 0440
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- with (.uses | default dict).pipelines }}
- name: pipelines
  configMap:
    name: {{ include "lib.name" (dict "root" $.root "name" "pipelines") }}
    {{- if ne . "*" }}
    items:
      - {key: {{ . }}.json, path: {{ . }}.json}
    {{- end }}
{{- end }}
{{- range $name, $extra := .values.extraVolumes }}
- name: extra-{{ $name }}
  {{- toYaml $extra.volume | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Sources of the projected volume of credentials: a missing Secret keeps the pod waiting until the credentials Job has made it. */}}
{{- define "lib.credentials" -}}
{{- $root := .root -}}
{{- $global := $root.Values.global -}}
{{- $uses := .uses | default dict -}}
{{- $sources := list -}}
{{- with $uses.kafka -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" (include "lib.kafka.secret" (dict "root" $root "user" .)) "path" "kafka" "keys" (list "username" "password"))) -}}
{{- if include "lib.kafka.ca" $root -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" (include "lib.kafka.ca" $root) "path" "ca" "keys" (list $global.kafka.ca.key) "as" "kafka.crt")) -}}
{{- end -}}
{{- end -}}
{{- with $uses.kafkaUsers -}}
{{- /* Of the users of an external Kafka only the names: who owns that Kafka makes them. */ -}}
{{- $keys := $global.kafka.external | ternary (list "username") (list "username" "password") -}}
{{- range $user := . -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" (include "lib.kafka.secret" (dict "root" $root "user" $user)) "path" (printf "kafka-users/%s" $user) "keys" $keys)) -}}
{{- end -}}
{{- end -}}
{{- with $uses.postgres -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" (include "lib.postgres.secret" (dict "root" $root "role" .)) "path" "postgres" "keys" (list "username" "password"))) -}}
{{- end -}}
{{- if or $uses.postgres $uses.postgresCa -}}
{{- if include "lib.postgres.ca" $root -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" $global.postgres.ca.existingSecret "path" "ca" "keys" (list $global.postgres.ca.key) "as" "postgres.crt")) -}}
{{- end -}}
{{- end -}}
{{- with $uses.postgresRoles -}}
{{- range $role := . -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" (include "lib.postgres.secret" (dict "root" $root "role" $role)) "path" (printf "postgres-roles/%s" $role) "keys" (list "username" "password"))) -}}
{{- end -}}
{{- end -}}
{{- if $uses.s3 -}}
{{- with include "lib.s3.secret" $root -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" . "path" "s3" "keys" (list "access-key-id" "secret-access-key"))) -}}
{{- end -}}
{{- end -}}
{{- if $uses.gate -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" (include "lib.gate.secret" $root) "path" "gate" "keys" (list "key"))) -}}
{{- end -}}
{{- with $uses.apiKeys -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" . "path" "api-keys" "keys" (list "keys.json"))) -}}
{{- end -}}
{{- with $uses.pepper -}}
{{- $sources = append $sources (include "lib.secretSource" (dict "secret" . "path" "pepper" "keys" (list "pepper"))) -}}
{{- end -}}
{{- range $uses.secrets -}}
{{- $sources = append $sources (include "lib.secretSource" .) -}}
{{- end -}}
{{- join "\n" $sources -}}
{{- end -}}

{{/* One Secret in a projected volume; takes secret, path, keys, and as (another file name for a single key). */}}
{{- define "lib.secretSource" -}}
- secret:
    name: {{ .secret }}
    items:
      {{- range .keys }}
      - {key: {{ . }}, path: {{ $.path }}/{{ $.as | default . }}}
      {{- end }}
{{- end -}}
