{{/*
Combinations of values that a schema cannot refuse. Each check takes the umbrella's context and prints a message, or nothing.
The rooms' values may be missing: Helm takes them away with a room that is switched off.
*/}}

{{/* All messages, one a line. */}}
{{- define "lib.checks" -}}
{{- $messages := list -}}
{{- range list "kafka" "postgres" "s3" "mlflow" "orders" "credentials" "routes" -}}
{{- $messages = append $messages (include (printf "lib.checks.%s" .) $ | trim) -}}
{{- end -}}
{{- without $messages "" | join "\n" -}}
{{- end -}}

{{- define "lib.checks.kafka" -}}
{{- $kafka := .Values.global.kafka -}}
{{- $ingest := .Values.ingest | default dict -}}
{{- $stream := .Values.stream | default dict -}}
{{- $collects := and $ingest.enabled ($ingest.collector | default dict).enabled -}}
{{- $sinks := and $stream.enabled ($stream.sink | default dict).enabled -}}
{{- $topics := and $ingest.enabled ($ingest.topics | default dict).enabled -}}
{{- if $kafka.external -}}
{{- if not $kafka.bootstrap }}
global.kafka.bootstrap is empty: an external Kafka needs its addresses, host:port,host:port
{{- end -}}
{{- $serving := .Values.serving | default dict -}}
{{- $logs := false -}}
{{- if and $serving.enabled ($serving.predictor | default dict).enabled -}}
{{- range include "lib.pipelines" . | fromYaml -}}
{{- if include "lib.logs" . }}{{ $logs = true }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $user, $used := dict "admin" $topics "collector" (or $collects $topics) "sink" (or $sinks $topics) "metrics" $topics "predictor" $logs -}}
{{- if and $used (not (get $kafka.users $user).existingSecret) }}
global.kafka.users.{{ $user }}.existingSecret is empty: an external Kafka needs a Secret with username and password there
{{- end -}}
{{- end -}}
{{- else if and $ingest.enabled ($ingest.kafka | default dict).enabled $ingest.kafka.controllers.enabled (ne (int $ingest.kafka.replicas) 3) }}
ingest.kafka.controllers is on with one broker: controllers of their own are for three, ingest.kafka.replicas: 3
{{- else if and (or $collects $sinks) (not (and $ingest.enabled ($ingest.kafka | default dict).enabled)) }}
ingest.kafka is switched off: describe another Kafka in global.kafka with external: true
{{- end -}}
{{- end -}}

{{- define "lib.checks.postgres" -}}
{{- $postgres := .Values.global.postgres -}}
{{- $stores := .Values.stores | default dict -}}
{{- $batch := .Values.batch | default dict -}}
{{- $registry := .Values.registry | default dict -}}
{{- $stream := .Values.stream | default dict -}}
{{- $airflow := and $batch.enabled ($batch.airflow | default dict).enabled -}}
{{- $mlflow := and $registry.enabled ($registry.mlflow | default dict).enabled (not .Values.global.mlflow.external) -}}
{{- $lake := or $airflow (and $stream.enabled ($stream.sink | default dict).enabled) -}}
{{- if $postgres.external -}}
{{- if not $postgres.host }}
global.postgres.host is empty: an external PostgreSQL needs its address
{{- end -}}
{{- range $role, $used := dict "airflow" $airflow "mlflow" $mlflow "lake" $lake -}}
{{- if and $used (not $postgres.admin.existingSecret) (not (get $postgres.databases $role).existingSecret) }}
global.postgres.databases.{{ $role }}.existingSecret is empty: give the database's owner there, or an admin who can make it in global.postgres.admin.existingSecret
{{- end -}}
{{- end -}}
{{- else if and (or $airflow $mlflow $lake) (not (and $stores.enabled ($stores.postgres | default dict).enabled)) }}
stores.postgres is switched off: describe another PostgreSQL in global.postgres with external: true
{{- end -}}
{{- end -}}

{{- define "lib.checks.s3" -}}
{{- $stores := .Values.stores | default dict -}}
{{- if and (not .Values.global.s3.external) (not (and $stores.enabled ($stores.s3 | default dict).enabled)) }}
{{- $needed := list -}}
{{- range $room, $part := dict "stream" "sink" "batch" "airflow" "registry" "mlflow" -}}
{{- $values := get $.Values $room | default dict -}}
{{- if and $values.enabled (get $values $part | default dict).enabled }}{{ $needed = append $needed $room }}{{ end -}}
{{- end -}}
{{- if $needed }}
stores.s3 is switched off: describe another S3 store in global.s3 with external: true
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lib.checks.mlflow" -}}
{{- $registry := .Values.registry | default dict -}}
{{- $batch := .Values.batch | default dict -}}
{{- $serving := .Values.serving | default dict -}}
{{- if .Values.global.mlflow.external -}}
{{- if not .Values.global.mlflow.uri }}
global.mlflow.uri is empty: an external MLflow needs its address
{{- end -}}
{{- else if not (and $registry.enabled ($registry.mlflow | default dict).enabled) -}}
{{- if or (and $batch.enabled ($batch.airflow | default dict).enabled) (and $serving.enabled ($serving.predictor | default dict).enabled) }}
registry.mlflow is switched off: describe another MLflow in global.mlflow with external: true
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lib.checks.orders" -}}
{{- $ingest := .Values.ingest | default dict -}}
{{- $collector := $ingest.collector | default dict -}}
{{- if and $ingest.enabled ($ingest.orders | default dict).enabled -}}
{{- if not $collector.enabled }}
ingest.orders is switched on and ingest.collector off: the order page posts to the collector
{{- end -}}
{{- if not (hasKey .Values.global.pipelines "orders") }}
ingest.orders is switched on without global.pipelines.orders: declare it as examples/orders/values.yaml does
{{- end -}}
{{- if and $collector.existingSecret (not $ingest.orders.existingSecret) }}
ingest.orders.existingSecret is empty: ingest.collector.existingSecret has keys of your own, so give a Secret with one of them as api-key, and a session-key
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lib.checks.credentials" -}}
{{- if and (not .Values.credentials.enabled) (include "levada.credentials.spec" . | fromJson) }}
credentials is switched off, but these Secrets are left to it: {{ include "levada.credentials.spec" . | fromJson | keys | sortAlpha | join ", " }}: give an existingSecret for each
{{- end -}}
{{- end -}}

{{- define "lib.checks.routes" -}}
{{- $airflow := (.Values.batch | default dict).airflow | default dict -}}
{{- $parts := dict
      "ingest.collector" ((.Values.ingest | default dict).collector)
      "ingest.orders" ((.Values.ingest | default dict).orders)
      "serving.predictor" ((.Values.serving | default dict).predictor)
      "batch.airflow.api" $airflow.api
      "registry.mlflow" ((.Values.registry | default dict).mlflow)
      "observability.prometheus" ((.Values.observability | default dict).prometheus) -}}
{{- range $name, $part := $parts -}}
{{- with $part -}}
{{- if and .ingress .ingress.enabled (not .ingress.host) }}
{{ $name }}.ingress.host is empty
{{- end -}}
{{- if and .httpRoute .httpRoute.enabled (not .httpRoute.host) }}
{{ $name }}.httpRoute.host is empty
{{- end -}}
{{- if and .httpRoute .httpRoute.enabled (not .httpRoute.gateway.name) }}
{{ $name }}.httpRoute.gateway.name is empty
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
