{{/* Whole objects that are the same for every part. Each begins its own document. */}}

{{- define "lib.serviceAccount" }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "lib.metadata" (dict "part" . "annotations" (.values.serviceAccount | default dict).annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}

{{/* A ClusterIP Service; takes part, name and ports ({name: number}, each to the container port of the same name or `targets`). */}}
{{- define "lib.service" }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "lib.metadata" (dict "part" .part "name" .name "annotations" (.part.values.service | default dict).annotations) | nindent 2 }}
spec:
  type: ClusterIP
  selector:
    {{- include "lib.selectorLabels" .part | nindent 4 }}
  ports:
    {{- range $name, $port := .ports }}
    - name: {{ $name }}
      port: {{ $port }}
      targetPort: {{ $name }}
    {{- end }}
{{- end -}}

{{/* Only above one replica: with one, it would only block a drain. Takes part and replicas. */}}
{{- define "lib.podDisruptionBudget" }}
{{- if gt (int .replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "lib.metadata" .part | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "lib.selectorLabels" .part | nindent 6 }}
{{- end }}
{{- end -}}

{{/*
A Job named with the hash of all it does: a change makes a new Job, no change keeps the finished one, and nothing ever meets an immutable
field. It has no time to live: `kubectl apply` of the same manifests must not run it again. Takes part and template (of its pod).
*/}}
{{- define "lib.job" }}
---
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "lib.metadata" (dict "part" .part "name" (printf "%s-%s" (include "lib.partName" .part) (sha256sum .template | trunc 10))) | nindent 2 }}
spec:
  backoffLimit: 20
  template:
    {{- .template | nindent 4 }}
{{- end -}}

{{/* The same on a schedule; takes part, template and schedule. */}}
{{- define "lib.cronJob" }}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  {{- include "lib.metadata" .part | nindent 2 }}
spec:
  schedule: {{ .schedule | quote }}
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 120
  successfulJobsHistoryLimit: 1
  failedJobsHistoryLimit: 1
  jobTemplate:
    spec:
      backoffLimit: 2
      template:
        {{- .template | nindent 8 }}
{{- end -}}

{{/* Claim template `data` of a StatefulSet. Its labels must never change. */}}
{{- define "lib.claim" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: data
    labels:
      {{- include "lib.selectorLabels" . | nindent 6 }}
      {{- with .claimLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .values.persistence.storageClass | default .root.Values.global.storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .values.persistence.size }}
{{- end -}}

{{/* Ingress and HTTPRoute to a Service of a part; takes part, service, port, and prefix (put before the host, with a dot). */}}
{{- define "lib.routes" }}
{{- $values := .part.values }}
{{- $prefix := "" }}
{{- with .prefix }}{{ $prefix = printf "%s." . }}{{ end }}
{{- if $values.ingress.enabled }}
{{- $host := printf "%s%s" $prefix $values.ingress.host }}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "lib.metadata" (dict "part" .part "name" .service "annotations" $values.ingress.annotations) | nindent 2 }}
spec:
  {{- with $values.ingress.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with $values.ingress.tls.secretName }}
  tls:
    - hosts: [{{ $host | quote }}]
      secretName: {{ . }}
  {{- end }}
  rules:
    - host: {{ $host | quote }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service:
                name: {{ .service }}
                port:
                  number: {{ .port }}
{{- end }}
{{- if $values.httpRoute.enabled }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "lib.metadata" (dict "part" .part "name" .service) | nindent 2 }}
spec:
  parentRefs:
    - name: {{ $values.httpRoute.gateway.name }}
      namespace: {{ $values.httpRoute.gateway.namespace | default .part.root.Release.Namespace }}
      {{- with $values.httpRoute.gateway.section }}
      sectionName: {{ . }}
      {{- end }}
  hostnames: [{{ printf "%s%s" $prefix $values.httpRoute.host | quote }}]
  rules:
    - matches:
        - path: {type: PathPrefix, value: /}
      backendRefs:
        - name: {{ .service }}
          port: {{ .port }}
{{- end }}
{{- end -}}

{{/* Where users reach a part by its route, without a slash at the end; empty without one. */}}
{{- define "lib.publicUrl" -}}
{{- if .values.httpRoute.enabled -}}
https://{{ .values.httpRoute.host }}
{{- else if .values.ingress.enabled -}}
{{ empty .values.ingress.tls.secretName | ternary "http" "https" }}://{{ .values.ingress.host }}
{{- end -}}
{{- end -}}
