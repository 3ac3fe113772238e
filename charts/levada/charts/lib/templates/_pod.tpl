{{/* What every pod has: identity, Pod Security Standard `restricted`, and where it may run. */}}
{{- define "lib.pod" -}}
{{- $uid := int (.uid | default 10001) -}}
{{- $gid := ternary (int .gid) $uid (hasKey . "gid") -}}
serviceAccountName: {{ .serviceAccount | default (include "lib.partName" (omit . "pipeline")) }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace | default 30 }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $uid }}
  runAsGroup: {{ $gid }}
  fsGroup: {{ $gid }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- $pullSecrets := list -}}
{{- range $name, $on := .root.Values.global.image.pullSecrets -}}
{{- if $on }}{{ $pullSecrets = append $pullSecrets (dict "name" $name) }}{{ end -}}
{{- end -}}
{{- with $pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $zones := list -}}
{{- range $zone, $on := .root.Values.global.region.zones -}}
{{- if $on }}{{ $zones = append $zones $zone }}{{ end -}}
{{- end -}}
{{- if .values.affinity }}
affinity:
  {{- toYaml .values.affinity | nindent 2 }}
{{- else if or $zones .antiAffinity }}
affinity:
  {{- if $zones }}
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: topology.kubernetes.io/zone
              operator: In
              values: {{ toJson $zones }}
  {{- end }}
  {{- if .antiAffinity }}
  {{- $others := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "lib.selectorLabels" . | fromYaml)) }}
  podAntiAffinity:
    {{- if eq .antiAffinity "required" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      {{- list $others | toYaml | nindent 6 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      {{- list (dict "weight" 100 "podAffinityTerm" $others) | toYaml | nindent 6 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Spreads a part's pods over zones, then nodes, as far as there are any; over the zones that are named without fail, if pods must be apart. */}}
{{- define "lib.spread" -}}
{{- $strict := and (eq (.antiAffinity | default "") "required") (not (empty .root.Values.global.region.zones)) -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: {{ and $strict (hasSuffix "zone" .) | ternary "DoNotSchedule" "ScheduleAnyway" }}
    labelSelector:
      matchLabels:
        {{- include "lib.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{/* What every container of a part has but its command, environment, ports, probes and mounts. */}}
{{- define "lib.container" -}}
image: {{ include "lib.image" . }}
imagePullPolicy: {{ .root.Values.global.image.pullPolicy }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{ include "lib.containerSecurity" . }}
{{- end -}}

{{- define "lib.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* The same for an init container that does little; takes part, and tools to use that image instead of the part's. */}}
{{- define "lib.initContainer" -}}
{{- $global := .part.root.Values.global -}}
image: {{ if .tools }}{{ include "lib.imageReference" (dict "root" .part.root "image" $global.image.tools) }}{{ else }}{{ include "lib.image" .part }}{{ end }}
imagePullPolicy: {{ $global.image.pullPolicy }}
resources:
  requests: {cpu: 10m, memory: 64Mi}
  limits: {cpu: "1", memory: 256Mi}
{{ include "lib.containerSecurity" . }}
{{- end -}}

{{/*
Probes by HTTP; takes port and paths {startup, liveness, readiness}. A start may take ten minutes: on a small node everything starts at
once. Liveness is slow to give up, readiness quick to notice.
*/}}
{{- define "lib.httpProbes" -}}
startupProbe:
  httpGet: {path: {{ .startup }}, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 120
livenessProbe:
  httpGet: {path: {{ .liveness }}, port: {{ .port }}}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: {{ .readiness }}, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* Port and probes of Levada's own long-running processes. */}}
{{- define "lib.healthPort" -}}
- name: metrics
  containerPort: 8090
{{- end -}}

{{- define "lib.healthProbes" -}}
{{ include "lib.httpProbes" (dict "port" "metrics" "startup" "/livez" "liveness" "/livez" "readiness" "/readyz") }}
{{- end -}}

{{/* An init container that waits until what the part uses can be used; takes part and targets (for `levada wait`). */}}
{{- define "lib.wait" -}}
- name: wait
  command: {{ toJson (concat (list "levada" "wait") .targets (list "--timeout" "900")) }}
  {{- include "lib.initContainer" (dict "part" .part "tools" true) | nindent 2 }}
  env:
    {{- include "lib.env" (dict "part" (dict "root" .part.root "values" dict "uses" .part.uses)) | nindent 4 }}
  volumeMounts:
    {{- include "lib.mounts" (dict "root" .part.root "values" dict "uses" .part.uses) | nindent 4 }}
{{- end -}}

{{/* Before a stop, the time in which the Service's endpoints forget the pod: no request meets a closed door. */}}
{{- define "lib.drain" -}}
lifecycle:
  preStop:
    sleep: {seconds: 5}
{{- end -}}
