{{/* Reference of a part's image: what its values say, and for what they leave empty part.image, else global.image.tools. */}}
{{- define "lib.image" -}}
{{- $own := .values.image | default dict -}}
{{- $base := .image | default .root.Values.global.image.tools -}}
{{- include "lib.imageReference" (dict "root" .root "image" (dict
      "repository" ($own.repository | default $base.repository)
      "tag" (or $own.tag (and (not $own.digest) $base.tag))
      "digest" (or $own.digest (and (not $own.tag) (not $own.repository) $base.digest)))) -}}
{{- end -}}

{{/* Reference of an image; takes root and image. Every image of the chart goes through here, so one registry mirrors all. */}}
{{- define "lib.imageReference" -}}
{{- with .root.Values.global.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.tag }}:{{ .image.tag }}{{ else if not .image.digest }}:{{ .root.Chart.AppVersion }}{{ end -}}
{{- with .image.digest }}@{{ . }}{{ end -}}
{{- end -}}
