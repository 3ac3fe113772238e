{{/*
Names and labels. Most helpers take a "part", a dict made by the caller for one workload:
  root       the chart's context
  component  its name: collector, kafka, …
  values     its block of values
  pipeline   the pipeline it belongs to, where it is one of many
  image      the image used where values.image is empty; by default global.image.tools
  uid, gid   the user and group it runs as, by default 10001 and the uid
  serviceAccount  one that exists, instead of the part's own
  token      whether it talks to the Kubernetes API
  grace      seconds to stop in, by default 30
  antiAffinity  required or preferred, where its pods shall be on nodes of their own
  claimLabels   further labels of its volume claims
  uses       what it needs of the line: see _uses.tpl
*/}}

{{/* The release's name, shortened so that every name below fits in 52 characters (a StatefulSet's limit). */}}
{{- define "lib.release" -}}
{{- $name := .Release.Name -}}
{{- if le (len $name) 30 -}}
{{- $name -}}
{{- else -}}
{{- printf "%s-%s" (trunc 21 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- end -}}

{{/* Name of an object of the release; takes root and name. */}}
{{- define "lib.name" -}}
{{- $name := printf "%s-%s" (include "lib.release" .root) .name -}}
{{- if le (len $name) 63 -}}
{{- $name -}}
{{- else -}}
{{- printf "%s-%s" (trunc 54 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- end -}}

{{/* Name of a part's objects. */}}
{{- define "lib.partName" -}}
{{- $name := .component -}}
{{- with .pipeline -}}
{{- $name = printf "%s-%s" $name . -}}
{{- end -}}
{{- include "lib.name" (dict "root" .root "name" $name) -}}
{{- end -}}

{{/* Labels that never change, for selectors. */}}
{{- define "lib.selectorLabels" -}}
app.kubernetes.io/name: levada
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pipeline }}
levada.io/pipeline: {{ . }}
{{- end }}
{{- end -}}

{{/* What runs in a component that is not Levada's own code; what the images pin is what is said here. */}}
{{- define "lib.versions" -}}
airflow-api: 3.3.2
airflow-dag-processor: 3.3.2
airflow-migrate: 3.3.2
airflow-scheduler: 3.3.2
kafka: 4.3.1
kafka-controller: 4.3.1
mlflow: 3.17.2
mlflow-migrate: 3.17.2
postgres: "17"
prometheus: "2.53"
s3: "4.48"
{{- end -}}

{{- define "lib.labels" -}}
{{ include "lib.selectorLabels" . }}
app.kubernetes.io/part-of: levada
app.kubernetes.io/version: {{ index (include "lib.versions" . | fromYaml) .component | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
levada.io/room: {{ .root.Chart.Name }}
{{- end -}}

{{/* Metadata of a part's object; `name` replaces the part's own. */}}
{{- define "lib.metadata" -}}
{{- $part := .part | default . -}}
name: {{ .name | default (include "lib.partName" $part) }}
namespace: {{ $part.root.Release.Namespace }}
labels:
  {{- include "lib.labels" $part | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
Metadata of a part's pods; takes part, scrape (whether Prometheus reads its port `metrics`; a path, where that is not /metrics) and
checksums ({name: text}: a change of the text restarts the pods). No version is in it: an upgrade that changes nothing else restarts nothing.
*/}}
{{- define "lib.podMetadata" -}}
labels:
  {{- include "lib.selectorLabels" .part | nindent 2 }}
  app.kubernetes.io/part-of: levada
  levada.io/room: {{ .part.root.Chart.Name }}
  {{- if .scrape }}
  levada.io/scrape: "true"
  {{- end }}
  {{- with .part.values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := dict -}}
{{- range $name, $text := .checksums -}}
{{- $_ := set $annotations (printf "checksum/%s" $name) (sha256sum $text | trunc 16) -}}
{{- end -}}
{{- if kindIs "string" .scrape -}}
{{- $_ := set $annotations "prometheus.io/path" .scrape -}}
{{- end -}}
{{- range $name, $text := .part.values.annotations -}}
{{- $_ := set $annotations $name $text -}}
{{- end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
