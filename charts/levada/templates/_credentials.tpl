{{/* What the credentials Job makes: {Secret: {key: how}}, without the Secrets that the user brings. */}}
{{- define "levada.credentials.spec" -}}
{{- $global := .Values.global -}}
{{- $release := include "lib.release" . -}}
{{- $spec := dict -}}
{{- $ingest := .Values.ingest | default dict -}}
{{- $airflow := (.Values.batch | default dict).airflow | default dict -}}
{{- $keyed := dict "key" (dict "random" 32) -}}
{{- if not $global.kafka.external -}}
{{- range $user, $block := $global.kafka.users -}}
{{- if not $block.existingSecret -}}
{{- $_ := set $spec (printf "%s-kafka-%s" $release $user) (dict "username" (dict "value" $user) "password" (dict "random" 32)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (not $global.postgres.external) (not $global.postgres.admin.existingSecret) -}}
{{- $_ := set $spec (printf "%s-postgres-admin" $release) (dict "username" (dict "value" "postgres") "password" (dict "random" 32)) -}}
{{- end -}}
{{- if or (not $global.postgres.external) $global.postgres.admin.existingSecret -}}
{{- range $role, $block := $global.postgres.databases -}}
{{- if not $block.existingSecret -}}
{{- $_ := set $spec (printf "%s-postgres-%s" $release $role) (dict "username" (dict "value" $role) "password" (dict "random" 32)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (not $global.s3.external) (not $global.s3.existingSecret) -}}
{{- $_ := set $spec (printf "%s-s3" $release) (dict "access-key-id" (dict "random" 18) "secret-access-key" (dict "random" 30)) -}}
{{- end -}}
{{- if not $global.gate.existingSecret -}}
{{- $_ := set $spec (printf "%s-gate" $release) $keyed -}}
{{- end -}}
{{- if and $airflow.enabled (not $airflow.existingSecret) -}}
{{- $_ := set $spec (printf "%s-airflow" $release) (dict
      "fernet-key" (dict "fernet" true)
      "api-secret-key" (dict "random" 32)
      "jwt-secret" (dict "random" 64)
      "admin-username" (dict "value" "admin")
      "admin-password" (dict "random" 18)) -}}
{{- end -}}
{{- with (.Values.serving | default dict).predictor -}}
{{- if and .enabled .apiKeys.enabled (not .apiKeys.existingSecret) -}}
{{- $_ := set $spec (printf "%s-api-key" $release) $keyed -}}
{{- $_ := set $spec (printf "%s-predictor-keys" $release) (dict "keys.json" (dict "apiKeysOf" (list (printf "%s-api-key/key" $release)))) -}}
{{- end -}}
{{- end -}}
{{- with $ingest.collector -}}
{{- if and .enabled (not .existingSecret) -}}
{{- $_ := set $spec (printf "%s-api-key" $release) $keyed -}}
{{- $_ := set $spec (printf "%s-collector-keys" $release) (dict "keys.json" (dict "apiKeysOf" (list (printf "%s-api-key/key" $release)))) -}}
{{- end -}}
{{- if and .enabled (not .pepper.existingSecret) -}}
{{- $_ := set $spec (printf "%s-pepper" $release) (dict "pepper" (dict "random" 32)) -}}
{{- end -}}
{{- end -}}
{{- with $ingest.orders -}}
{{- if and .enabled (not .existingSecret) -}}
{{- $_ := set $spec (printf "%s-orders" $release) (dict "session-key" (dict "random" 32)) -}}
{{- end -}}
{{- end -}}
{{- toJson $spec -}}
{{- end -}}
