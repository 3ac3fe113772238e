{{/* The enabled pipelines as YAML {name: declaration with its name}; takes the chart's context. */}}
{{- define "lib.pipelines" -}}
{{- $pipelines := dict -}}
{{- range $name, $pipeline := .Values.global.pipelines -}}
{{- if dig "enabled" true $pipeline -}}
{{- $_ := set $pipelines $name (set (deepCopy $pipeline) "name" $name) -}}
{{- end -}}
{{- end -}}
{{- toYaml $pipelines -}}
{{- end -}}

{{/* Whether predictions of a pipeline are logged: "true", or nothing. */}}
{{- define "lib.logs" -}}
{{- if and .model (dig "serving" "enabled" true .) (gt (dig "serving" "logged" 1.0 . | float64) 0.0) }}true{{ end -}}
{{- end -}}
