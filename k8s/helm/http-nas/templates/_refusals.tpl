{{- /* What would lose data, hang or contradict itself is refused, with what to do instead. */ -}}
{{- define "http-nas.refuse" -}}
{{- include "http-nas.refuseReplicas" . }}
{{- include "http-nas.refuseScaling" . }}
{{- include "http-nas.refuseTls" . }}
{{- include "http-nas.refuseEnv" . }}
{{- if and .Values.auth.clusterKeys (not .Values.auth.existingSecret) }}
{{- fail "auth.clusterKeys needs auth.existingSecret, with a file that has an [[issuer]]." }}
{{- end }}
{{- end }}

{{- define "http-nas.refuseReplicas" -}}
{{- $mode := .Values.pvc.accessMode }}
{{- if ne $mode "ReadWriteMany" }}
{{- $why := printf "but only one pod can have a %s volume" $mode }}
{{- $todo := "Set pvc.accessMode=ReadWriteMany" }}
{{- with .Values.pvc.existingClaim }}
{{- $todo = printf "If the claim %s is ReadWriteMany, say so with pvc.accessMode=ReadWriteMany" . }}
{{- else }}
{{- $todo = print $todo " and a pvc.storageClass that can do that (such as CephFS)" }}
{{- end }}
{{- $count := int .Values.replicaCount }}
{{- if gt $count 1 }}
{{- fail (printf "replicaCount is %d, %s. %s, or replicaCount=1." $count $why $todo) }}
{{- end }}
{{- $most := int (include "http-nas.mostPods" .) }}
{{- if gt $most 1 }}
{{- $off := "autoscaling.enabled=false" }}
{{- fail (printf "autoscaling.maxReplicas is %d, %s. %s, or %s." $most $why $todo $off) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "http-nas.refuseScaling" -}}
{{- with .Values.autoscaling }}
{{- if .enabled }}
{{- $least := int .minReplicas }}
{{- $most := int .maxReplicas }}
{{- if gt $least $most }}
{{- fail (printf "autoscaling.minReplicas is %d, more than maxReplicas, %d." $least $most) }}
{{- end }}
{{- if not (or .targetCPUUtilizationPercentage .targetMemoryUtilizationPercentage) }}
{{- fail "autoscaling needs targetCPUUtilizationPercentage or targetMemoryUtilizationPercentage." }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "http-nas.refuseTls" -}}
{{- with .Values.tls }}
{{- if and (or .certificate.enabled .clientCASecretName) (not .enabled) }}
{{- fail "tls.certificate and tls.clientCASecretName need tls.enabled=true." }}
{{- end }}
{{- if and .certificate.enabled (not .certificate.issuerRef.name) }}
{{- fail "tls.certificate needs the name of an issuer: tls.certificate.issuerRef.name." }}
{{- end }}
{{- if and .clientCASecretName (not $.Values.auth.existingSecret) }}
{{- fail "tls.clientCASecretName needs auth.existingSecret, whose file says whom certificates are for." }}
{{- end }}
{{- end }}
{{- end }}

{{- define "http-nas.refuseEnv" -}}
{{- $values := dict
  "STORAGE_PATH" "storagePath"
  "HTTPNAS_LISTEN" "service.port"
  "HTTPNAS_DURABILITY" "durability"
  "HTTPNAS_MAX_UPLOAD" "maxUpload"
  "HTTPNAS_STALL" "stall"
  "HTTPNAS_IDLE" "idle"
  "HTTPNAS_DRAIN" "drain"
  "HTTPNAS_HEADROOM" "headroom"
  "HTTPNAS_CORS_ORIGINS" "corsOrigins"
  "HTTPNAS_HOSTS" "hosts"
  "HTTPNAS_TLS_CERT" "tls.secretName"
  "HTTPNAS_TLS_KEY" "tls.secretName"
  "HTTPNAS_TLS_CLIENT_CA" "tls.clientCASecretName"
  "HTTPNAS_AUTH" "auth.existingSecret"
  "HTTPNAS_CONNECTIONS_PER_CLIENT" "connectionsPerClient"
  "HTTPNAS_PROXIES" "proxies"
}}
{{- range $variable := .Values.extraEnv }}
{{- with get $values $variable.name }}
{{- fail (printf "extraEnv sets %s: use the value %s instead." $variable.name .) }}
{{- end }}
{{- end }}
{{- end }}
