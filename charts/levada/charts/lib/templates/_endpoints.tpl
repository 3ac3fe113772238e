{{/*
Where the parts find each other: what global says of an external one, else the bundled Service. Each takes the chart's context.
A single process that must differ sets the variable in its extraEnv.
*/}}

{{/* Name of a Secret: the one the user made, else the one the credentials Job makes; takes root, existing and name. */}}
{{- define "lib.secret" -}}
{{- .existing | default (include "lib.name" (dict "root" .root "name" .name)) -}}
{{- end -}}

{{- define "lib.kafka.bootstrap" -}}
{{- if .Values.global.kafka.external -}}
{{- .Values.global.kafka.bootstrap -}}
{{- else -}}
{{- include "lib.name" (dict "root" . "name" "kafka") }}:9092
{{- end -}}
{{- end -}}

{{- define "lib.kafka.protocol" -}}
{{- if .Values.global.kafka.external -}}
{{- .Values.global.kafka.protocol -}}
{{- else -}}
{{- empty .Values.global.kafka.tls.existingSecret | ternary "SASL_PLAINTEXT" "SASL_SSL" -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the authority of Kafka's certificates; empty: none is needed. */}}
{{- define "lib.kafka.ca" -}}
{{- $kafka := .Values.global.kafka -}}
{{- if or $kafka.external $kafka.tls.existingSecret -}}
{{- $kafka.ca.existingSecret | default ($kafka.external | ternary "" $kafka.tls.existingSecret) -}}
{{- end -}}
{{- end -}}

{{/* Takes root and user. */}}
{{- define "lib.kafka.secret" -}}
{{- include "lib.secret" (dict "root" .root "existing" (get .root.Values.global.kafka.users .user).existingSecret "name" (printf "kafka-%s" .user)) -}}
{{- end -}}

{{- define "lib.postgres.host" -}}
{{- .Values.global.postgres.external | ternary .Values.global.postgres.host (include "lib.name" (dict "root" . "name" "postgres")) -}}
{{- end -}}

{{- define "lib.postgres.port" -}}
{{- .Values.global.postgres.external | ternary (int .Values.global.postgres.port) 5432 -}}
{{- end -}}

{{- define "lib.postgres.sslmode" -}}
{{- .Values.global.postgres.external | ternary .Values.global.postgres.sslmode "disable" -}}
{{- end -}}

{{- define "lib.postgres.ca" -}}
{{- if .Values.global.postgres.external -}}
{{- .Values.global.postgres.ca.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* Takes root and role. */}}
{{- define "lib.postgres.database" -}}
{{- if eq .role "admin" -}}
postgres
{{- else -}}
{{- (get .root.Values.global.postgres.databases .role).name -}}
{{- end -}}
{{- end -}}

{{/* Takes root and role. */}}
{{- define "lib.postgres.secret" -}}
{{- $postgres := .root.Values.global.postgres -}}
{{- $block := eq .role "admin" | ternary $postgres.admin (get $postgres.databases .role) -}}
{{- include "lib.secret" (dict "root" .root "existing" $block.existingSecret "name" (printf "postgres-%s" .role)) -}}
{{- end -}}

{{/* Environment of libpq and asyncpg for one role; takes root and role. The URL beside it then needs neither user nor password. */}}
{{- define "lib.postgres.env" -}}
{{- $secret := include "lib.postgres.secret" . -}}
PGUSER:
  secretKeyRef: {name: {{ $secret }}, key: username}
PGPASSWORD:
  secretKeyRef: {name: {{ $secret }}, key: password}
PGSSLMODE: {{ include "lib.postgres.sslmode" .root }}
{{- if include "lib.postgres.ca" .root }}
PGSSLROOTCERT: /etc/levada/credentials/ca/postgres.crt
{{- end }}
{{- end -}}

{{/* Takes root, role and driver. */}}
{{- define "lib.postgres.url" -}}
postgresql+{{ .driver }}://{{ include "lib.postgres.host" .root }}:{{ include "lib.postgres.port" .root }}/{{ include "lib.postgres.database" . }}
{{- end -}}

{{/* Empty for AWS. */}}
{{- define "lib.s3.endpoint" -}}
{{- if .Values.global.s3.external -}}
{{- .Values.global.s3.endpoint -}}
{{- else -}}
http://{{ include "lib.name" (dict "root" . "name" "s3") }}:8333
{{- end -}}
{{- end -}}

{{- define "lib.s3.pathStyle" -}}
{{- .Values.global.s3.external | ternary .Values.global.s3.pathStyle true -}}
{{- end -}}

{{/* Empty where the SDK finds its credentials itself. */}}
{{- define "lib.s3.secret" -}}
{{- if .Values.global.s3.external -}}
{{- .Values.global.s3.existingSecret -}}
{{- else -}}
{{- include "lib.secret" (dict "root" . "existing" .Values.global.s3.existingSecret "name" "s3") -}}
{{- end -}}
{{- end -}}

{{- define "lib.mlflow.uri" -}}
{{- if .Values.global.mlflow.external -}}
{{- .Values.global.mlflow.uri -}}
{{- else -}}
http://{{ include "lib.name" (dict "root" . "name" "mlflow") }}:5000
{{- end -}}
{{- end -}}

{{- define "lib.gate.secret" -}}
{{- include "lib.secret" (dict "root" . "existing" .Values.global.gate.existingSecret "name" "gate") -}}
{{- end -}}
