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
