{{- define "http-nas.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* 50 characters leave room in the 63 of a label for what some names end in. */ -}}
{{- define "http-nas.fullname" -}}
{{- $name := include "http-nas.name" . }}
{{- $both := printf "%s-%s" .Release.Name $name }}
{{- if contains $name .Release.Name }}
{{- $both = .Release.Name }}
{{- end }}
{{- default $both .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* A Deployment's selector can never be changed: nothing may be added here. */ -}}
{{- define "http-nas.selectorLabels" -}}
app.kubernetes.io/name: {{ include "http-nas.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "http-nas.metaLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (replace "+" "_" .Chart.Version) }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "http-nas.labels" -}}
{{ include "http-nas.selectorLabels" . }}
{{ include "http-nas.metaLabels" . }}
{{- end }}

{{- /* Not the name of the daemon's pods: the Service must not send requests to the test. */ -}}
{{- define "http-nas.testLabels" -}}
app.kubernetes.io/name: {{ include "http-nas.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "http-nas.serviceAccountName" -}}
{{- $own := .Values.serviceAccount.create | ternary (include "http-nas.fullname" .) "default" }}
{{- default $own .Values.serviceAccount.name }}
{{- end }}

{{- define "http-nas.image" -}}
{{- with .Values.image.registry }}{{ . | trimSuffix "/" }}/{{ end }}
{{- .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "http-nas.ownClaim" -}}
{{- default (printf "%s-storage" (include "http-nas.fullname" .)) .Values.pvc.claimName }}
{{- end }}

{{- define "http-nas.claim" -}}
{{- default (include "http-nas.ownClaim" .) .Values.pvc.existingClaim }}
{{- end }}

{{- /* Also the name of the ports, from which meshes take what is spoken there. */ -}}
{{- define "http-nas.scheme" -}}
{{- .Values.tls.enabled | ternary "https" "http" }}
{{- end }}

{{- define "http-nas.tlsSecret" -}}
{{- default (printf "%s-tls" (include "http-nas.fullname" .)) .Values.tls.secretName }}
{{- end }}

{{- define "http-nas.serviceNames" -}}
{{- $name := include "http-nas.fullname" . }}
{{- $names := list $name }}
{{- range $domain := list "" ".svc" ".svc.cluster.local" }}
{{- $names = append $names (print $name "." $.Release.Namespace $domain) }}
{{- end }}
{{- $names | join " " }}
{{- end }}

{{- /* How many pods there may be. */ -}}
{{- define "http-nas.mostPods" -}}
{{- .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.replicaCount }}
{{- end }}

{{- /* Numbers of a values file come as floats, and big ones would be written as 1e+09. */ -}}
{{- define "http-nas.bytes" -}}
{{- kindIs "string" . | ternary . (. | int64 | toString) }}
{{- end }}

{{- /* Also what the chart itself makes known, and the address that Prometheus asks for. */ -}}
{{- define "http-nas.hosts" -}}
{{- $hosts := concat .Values.hosts (include "http-nas.serviceNames" . | splitList " ") }}
{{- if .Values.ingress.enabled }}
{{- range .Values.ingress.hosts }}
{{- if and .host (not (hasPrefix "*" .host)) }}
{{- $hosts = append $hosts .host }}
{{- end }}
{{- end }}
{{- end }}
{{- $hosts = append $hosts "$(POD_IP)" }}
{{- $hosts | uniq | join " " }}
{{- end }}
