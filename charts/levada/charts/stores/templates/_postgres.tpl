{{- define "stores.postgres.config" -}}
{{- /* No TLS and no trust: every connection, also a local one, proves its password. */ -}}
{{- $settings := dict
      "listen_addresses" "*"
      "unix_socket_directories" "/var/run/postgresql"
      "hba_file" "/etc/postgresql/pg_hba.conf"
      "ident_file" "/var/lib/postgresql/data/pg_ident.conf"
      "password_encryption" "scram-sha-256"
      "max_connections" "100"
      "shared_buffers" "96MB"
      "dynamic_shared_memory_type" "posix"
      "max_wal_size" "512MB"
      "timezone" "UTC"
      "log_timezone" "UTC"
      "log_line_prefix" "%m [%p] %q%u@%d "
      "log_min_duration_statement" "1s" -}}
{{- range $name, $value := .Values.postgres.config -}}
{{- $_ := set $settings $name (toString $value) -}}
{{- end -}}
{{- $lines := list -}}
{{- range $name, $value := $settings -}}
{{- $lines = append $lines (printf "%s = '%s'" $name (replace "'" "''" $value)) -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{- define "stores.postgres.mounts" -}}
{{ include "lib.mounts" . }}
- {name: data, mountPath: /var/lib/postgresql}
- {name: config, mountPath: /etc/postgresql, readOnly: true}
- {name: run, mountPath: /var/run/postgresql}
- {name: shm, mountPath: /dev/shm}
{{- end -}}
