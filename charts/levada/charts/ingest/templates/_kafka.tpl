{{/*
The layout of Kafka: `combined` nodes that are broker and controller, one or three; or `broker` nodes beside `controller` nodes. It is for
ever: what a disk was formatted for is in its cluster id, so nodes of two layouts never speak with each other.
*/}}
{{- define "ingest.kafka.clusterId" -}}
{{- $kafka := .Values.kafka -}}
{{- $layout := "" -}}
{{- if $kafka.controllers.enabled -}}
{{- $layout = printf "/%d+%d" (int $kafka.replicas) (int $kafka.controllers.replicas) -}}
{{- else if gt (int $kafka.replicas) 1 -}}
{{- $layout = printf "/%d" (int $kafka.replicas) -}}
{{- end -}}
{{- /* 22 characters of base64url that are a 128-bit id: the last one may only be A, Q, g or w. */ -}}
{{- $kafka.clusterId | default (printf "%sA" (printf "%s/%s%s" .Release.Namespace .Release.Name $layout | sha256sum | trunc 21)) -}}
{{- end -}}

{{/* The domain of the nodes' own names; takes root and component. */}}
{{- define "ingest.kafka.domain" -}}
{{- printf "%s-%ss.%s.svc" (include "lib.name" (dict "root" .root "name" "kafka")) (eq .component "kafka" | ternary "broker" "controller") .root.Release.Namespace -}}
{{- end -}}

{{/* The hosts of the quorum, as a JSON list. The first of them begins it. */}}
{{- define "ingest.kafka.voters" -}}
{{- $component := .Values.kafka.controllers.enabled | ternary "kafka-controller" "kafka" -}}
{{- $replicas := .Values.kafka.controllers.enabled | ternary .Values.kafka.controllers.replicas .Values.kafka.replicas -}}
{{- $hosts := list -}}
{{- range $ordinal := until (int $replicas) -}}
{{- $hosts = append $hosts (printf "%s-%d.%s" (include "lib.name" (dict "root" $ "name" $component)) $ordinal (include "ingest.kafka.domain" (dict "root" $ "component" $component))) -}}
{{- end -}}
{{- toJson $hosts -}}
{{- end -}}

{{/*
server.properties of all nodes of a role, tried with Kafka 4.3.1; what is a node's own is added in its pod. Passwords and certificates are
read from files by Kafka itself. The cleaner's buffer is heap, 128 MiB if nothing is said; only Kafka's own small topics are compacted here.
Takes root and role.
*/}}
{{- define "ingest.kafka.properties" -}}
{{- $kafka := .root.Values.kafka -}}
{{- $plain := "org.apache.kafka.common.security.plain.PlainLoginModule required" -}}
{{- $dir := "${dir:/etc/kafka/credentials" -}}
{{- $broker := printf "%s username=\"%s/broker:username}\" password=\"%s/broker:password}\" user_%s/broker:username}=\"%s/broker:password}\";" $plain $dir $dir $dir $dir -}}
{{- $tls := .root.Values.global.kafka.tls.existingSecret -}}
{{- $protocol := empty $tls | ternary "SASL_PLAINTEXT" "SASL_SSL" -}}
{{- $three := gt (int $kafka.replicas) 1 -}}
{{- $copies := $three | ternary "3" "1" -}}
{{- $inSync := $three | ternary "2" "1" -}}
{{- $voters := list -}}
{{- range include "ingest.kafka.voters" .root | fromJsonArray -}}
{{- $voters = append $voters (printf "%s:9093" .) -}}
{{- end -}}
{{- $roles := dict "combined" "broker,controller" "broker" "broker" "controller" "controller" -}}
{{- $listeners := dict "combined" "CLIENT://:9092,INTERNAL://:9094,CONTROLLER://:9093" "broker" "CLIENT://:9092,INTERNAL://:9094" "controller" "CONTROLLER://:9093" -}}
{{- $properties := dict
      "process.roles" (get $roles .role)
      "controller.quorum.bootstrap.servers" (join "," $voters)
      "listeners" (get $listeners .role)
      "listener.security.protocol.map" (printf "CLIENT:%s,INTERNAL:%s,CONTROLLER:%s" $protocol $protocol $protocol)
      "controller.listener.names" "CONTROLLER"
      "sasl.mechanism.controller.protocol" "PLAIN"
      "config.providers" "dir"
      "config.providers.dir.class" "org.apache.kafka.common.config.provider.DirectoryConfigProvider"
      "config.providers.dir.param.allowed.paths" (empty $tls | ternary "/etc/kafka/credentials" "/etc/kafka/credentials,/etc/kafka/tls")
      "listener.name.controller.sasl.enabled.mechanisms" "PLAIN"
      "listener.name.controller.plain.sasl.jaas.config" $broker
      "authorizer.class.name" "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
      "super.users" (printf "User:%s/broker:username};User:%s/admin:username}" $dir $dir)
      "allow.everyone.if.no.acl.found" "false"
      "auto.create.topics.enable" "false"
      "default.replication.factor" $copies
      "min.insync.replicas" $inSync
      "offsets.topic.replication.factor" $copies
      "transaction.state.log.replication.factor" $copies
      "transaction.state.log.min.isr" $inSync
      "share.coordinator.state.topic.replication.factor" $copies
      "share.coordinator.state.topic.min.isr" $inSync
      "message.max.bytes" "10485760"
      "log.dirs" "/var/lib/kafka/data"
      "log.cleaner.dedupe.buffer.size" "33554432"
      "metric.reporters" "io.strimzi.kafka.metrics.KafkaPrometheusMetricsReporter"
      "kafka.metrics.reporters" "io.strimzi.kafka.metrics.YammerPrometheusMetricsReporter"
      "prometheus.metrics.reporter.listener" "http://:9404"
-}}
{{- if ne .role "controller" -}}
{{- $properties = merge $properties (dict
      "inter.broker.listener.name" "INTERNAL"
      "sasl.mechanism.inter.broker.protocol" "PLAIN"
      "listener.name.client.sasl.enabled.mechanisms" "SCRAM-SHA-512,PLAIN"
      "listener.name.client.scram-sha-512.sasl.jaas.config" "org.apache.kafka.common.security.scram.ScramLoginModule required;"
      "listener.name.client.plain.sasl.jaas.config" (printf "%s user_%s/admin:username}=\"%s/admin:password}\";" $plain $dir $dir)
      "listener.name.internal.sasl.enabled.mechanisms" "PLAIN"
      "listener.name.internal.plain.sasl.jaas.config" $broker) -}}
{{- end -}}
{{- if gt (len $voters) 1 -}}
{{- /* A node with a new disk takes the place of the voter that it was. */ -}}
{{- if ne .role "broker" -}}
{{- $_ := set $properties "controller.quorum.auto.join.enable" "true" -}}
{{- end -}}
{{- /* How long a broker may be silent before others lead its partitions. If it was the controller too, this begins after
      the election of the next one, some three seconds later. */ -}}
{{- $_ := set $properties "broker.session.timeout.ms" "4000" -}}
{{- $_ := set $properties "broker.heartbeat.interval.ms" "1000" -}}
{{- /* On the first start brokers wait for a quorum, which waits for the last of its images. */ -}}
{{- $_ := set $properties "initial.broker.registration.timeout.ms" "900000" -}}
{{- end -}}
{{- if $tls -}}
{{- $properties = merge $properties (dict
      "ssl.keystore.type" "PEM"
      "ssl.keystore.key" "${dir:/etc/kafka/tls:tls.key}"
      "ssl.keystore.certificate.chain" "${dir:/etc/kafka/tls:tls.crt}"
      "ssl.truststore.type" "PEM"
      "ssl.truststore.certificates" "${dir:/etc/kafka/tls:ca.crt}") -}}
{{- end -}}
{{- /* Without the list a scrape is 690 KB of request histograms; with it, about 40 KB. */ -}}
{{- $_ := set $properties "prometheus.metrics.reporter.allowlist" (join "," (list
      "kafka_server_(brokertopicmetrics|replicamanager|kafkarequesthandlerpool|kafkaserver|raft_metrics|group_coordinator_metrics|plugins|delayedoperationpurgatory)_.*"
      "kafka_controller_(kafkacontroller|controllerstats)_.*" "kafka_cluster_partition_.*" "kafka_log_log_.*"
      "kafka_network_(socketserver|requestchannel)_.*" "jvm_memory_(used|max|committed)_bytes" "jvm_gc.*" "jvm_threads_current" "process_.*")) -}}
{{- range $key, $value := $kafka.config -}}
{{- $_ := set $properties $key (toString $value) -}}
{{- end -}}
{{- $lines := list -}}
{{- range $key, $value := $properties -}}
{{- $lines = append $lines (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{/* Copies of a new topic. */}}
{{- define "ingest.kafka.replicationFactor" -}}
{{- .Values.global.kafka.external | ternary (int .Values.global.kafka.replicationFactor) (int .Values.kafka.replicas) -}}
{{- end -}}

{{- define "ingest.kafka.mounts" -}}
{{ include "lib.mounts" . }}
- {name: data, mountPath: /var/lib/kafka}
- {name: node, mountPath: /etc/kafka/node, readOnly: true}
- {name: kafka-credentials, mountPath: /etc/kafka/credentials, readOnly: true}
{{- if .root.Values.global.kafka.tls.existingSecret }}
- {name: kafka-tls, mountPath: /etc/kafka/tls, readOnly: true}
{{- end }}
{{- end -}}

{{/* A ready node lets clients, or voters, in; takes the port. A start reads every log that was not closed. */}}
{{- define "ingest.kafka.probes" -}}
startupProbe:
  tcpSocket: {port: {{ .port }}}
  periodSeconds: 5
  failureThreshold: 360
livenessProbe:
  tcpSocket: {port: {{ .port }}}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  tcpSocket: {port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* ConfigMap, headless Service and StatefulSet of the nodes of one role; takes part (with role, replicas and firstNode). */}}
{{- define "ingest.kafka.nodes" -}}
{{- $part := . -}}
{{- $root := .root -}}
{{- $name := include "lib.partName" . -}}
{{- $domain := include "ingest.kafka.domain" . -}}
{{- $properties := include "ingest.kafka.properties" . -}}
{{- $ports := dict "combined" (dict "client" 9092 "controller" 9093 "internal" 9094) "broker" (dict "client" 9092 "internal" 9094) "controller" (dict "controller" 9093) -}}
{{- $ports = get $ports .role -}}
{{- $main := ne .role "controller" | ternary "client" "controller" -}}
{{- /* One broker has nobody to catch up with. */ -}}
{{- $watched := and (ne .role "controller") (gt (int .replicas) 1) -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "lib.metadata" $part | nindent 2 }}
data:
  server.properties: |
    {{- $properties | nindent 4 }}
{{- include "lib.serviceAccount" $part }}
{{- include "lib.podDisruptionBudget" (dict "part" $part "replicas" .replicas) }}
---
# The addresses of the nodes themselves; the quorum needs them before a node is ready.
apiVersion: v1
kind: Service
metadata:
  {{- include "lib.metadata" (dict "part" $part "name" ($domain | splitList "." | first)) | nindent 2 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "lib.selectorLabels" $part | nindent 4 }}
  ports:
    {{- range $port, $number := $ports }}
    - {name: {{ $port }}, port: {{ $number }}, targetPort: {{ $port }}}
    {{- end }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "lib.metadata" $part | nindent 2 }}
spec:
  serviceName: {{ $domain | splitList "." | first }}
  replicas: {{ .replicas }}
  {{- /* No node of a quorum is ready before most of them run. With one, the default, which cannot be changed any more, stays. */}}
  {{- if gt (int .replicas) 1 }}
  podManagementPolicy: Parallel
  {{- end }}
  selector:
    matchLabels:
      {{- include "lib.selectorLabels" $part | nindent 6 }}
  template:
    metadata:
      {{- include "lib.podMetadata" (dict "part" $part "scrape" true "checksums" (dict "config" $properties)) | nindent 6 }}
    spec:
      {{- include "lib.pod" $part | nindent 6 }}
      {{- include "lib.spread" $part | nindent 6 }}
      initContainers:
        # Only an empty disk is formatted; a node that knows its quorum never is.
        - name: prepare
          command:
            - levada
            - broker
            - prepare
            - --shared=/etc/kafka/shared/server.properties
            - --into=/etc/kafka/node
            - --cluster-id={{ include "ingest.kafka.clusterId" $root }}
            - --node={{ .firstNode }}$(NODE)
            - --host=$(POD).{{ $domain }}
            {{- if ne .role "controller" }}
            - --rack=$(ZONE)
            {{- range $ordinal, $rack := $root.Values.kafka.racks }}
            - --rack-of={{ $ordinal }}={{ $rack }}
            {{- end }}
            {{- end }}
            {{- if ne .role "broker" }}
            {{- range include "ingest.kafka.voters" $root | fromJsonArray }}
            - --voter={{ . }}:9404
            {{- end }}
            {{- end }}
          {{- include "lib.initContainer" (dict "part" $part "tools" true) | nindent 10 }}
          env:
            {{- include "lib.env" (dict "part" (dict "root" $root "values" dict) "env" (dict
                  "NODE" (dict "fieldRef" (dict "fieldPath" "metadata.labels['apps.kubernetes.io/pod-index']"))
                  "POD" (dict "fieldRef" (dict "fieldPath" "metadata.name"))
                  "ZONE" (dict "fieldRef" (dict "fieldPath" "metadata.labels['topology.kubernetes.io/zone']")))) | nindent 12 }}
          volumeMounts:
            {{- include "lib.mounts" (dict "root" $root "values" dict) | nindent 12 }}
            - {name: data, mountPath: /var/lib/kafka, readOnly: true}
            - {name: shared, mountPath: /etc/kafka/shared, readOnly: true}
            - {name: node, mountPath: /etc/kafka/node}
        - name: format
          command:
            - /bin/sh
            - -c
            - >-
              exec /opt/kafka/bin/kafka-storage.sh format --cluster-id={{ include "ingest.kafka.clusterId" $root }}
              --config /etc/kafka/node/server.properties --ignore-formatted "$(cat /etc/kafka/node/format)"
          {{- include "lib.container" $part | nindent 10 }}
          env:
            {{- include "lib.env" (dict "part" $part "env" (dict "LOG_DIR" "/tmp" "KAFKA_HEAP_OPTS" "-Xmx128m")) | nindent 12 }}
          volumeMounts:
            {{- include "ingest.kafka.mounts" $part | nindent 12 }}
      containers:
        - name: kafka
          command: [/opt/kafka/bin/kafka-server-start.sh, /etc/kafka/node/server.properties]
          {{- include "lib.container" $part | nindent 10 }}
          env:
            {{- include "lib.env" (dict "part" $part "env" (dict "LOG_DIR" "/tmp" "KAFKA_HEAP_OPTS" (printf "-Xms%s -Xmx%s" .values.heap .values.heap))) | nindent 12 }}
          ports:
            {{- range $port, $number := $ports }}
            - {name: {{ $port }}, containerPort: {{ $number }}}
            {{- end }}
            - {name: metrics, containerPort: 9404}
          {{- include "ingest.kafka.probes" (dict "port" $main) | nindent 10 }}
          volumeMounts:
            {{- include "ingest.kafka.mounts" $part | nindent 12 }}
        {{- if $watched }}
        # A pod is ready when its broker has caught up: only then does a rolling restart, or a drain, go on to the next.
        - name: in-sync
          command: [levada, broker, watch, --node={{ .firstNode }}$(NODE), --bootstrap=$(POD).{{ $domain }}:9092]
          {{- include "lib.initContainer" (dict "part" $part "tools" true) | nindent 10 }}
          env:
            {{- include "lib.env" (dict "part" (dict "root" $root "values" dict "uses" (dict "kafka" "admin")) "env" (dict
                  "NODE" (dict "fieldRef" (dict "fieldPath" "metadata.labels['apps.kubernetes.io/pod-index']"))
                  "POD" (dict "fieldRef" (dict "fieldPath" "metadata.name")))) | nindent 12 }}
          ports:
            - {name: in-sync, containerPort: 8090}
          {{- include "lib.httpProbes" (dict "port" "in-sync" "startup" "/livez" "liveness" "/livez" "readiness" "/readyz") | nindent 10 }}
          volumeMounts:
            {{- include "lib.mounts" (dict "root" $root "values" dict "uses" (dict "kafka" "admin")) | nindent 12 }}
        {{- end }}
      volumes:
        {{- include "lib.volumes" (dict "root" $root "values" .values "uses" ($watched | ternary (dict "kafka" "admin") dict)) | nindent 8 }}
        - name: shared
          configMap:
            name: {{ $name }}
        - name: node
          emptyDir: {}
        - name: kafka-credentials
          projected:
            defaultMode: 0440
            sources:
              {{- range list "broker" "admin" }}
              {{- include "lib.secretSource" (dict "secret" (include "lib.kafka.secret" (dict "root" $root "user" .)) "path" . "keys" (list "username" "password")) | nindent 14 }}
              {{- end }}
        {{- with $root.Values.global.kafka.tls.existingSecret }}
        - name: kafka-tls
          projected:
            defaultMode: 0440
            sources:
              - secret:
                  name: {{ . }}
                  items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
              - secret:
                  name: {{ include "lib.kafka.ca" $root }}
                  items: [{key: {{ $root.Values.global.kafka.ca.key }}, path: ca.crt}]
        {{- end }}
  volumeClaimTemplates:
    {{- include "lib.claim" $part | nindent 4 }}
{{- end -}}
