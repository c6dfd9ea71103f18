{{- define "vmcp.name" -}}
{{- .Values.fullnameOverride | default (printf "%s" (.Values.nameOverride | default "vmcp-session-controller")) | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "vmcp.account" -}}
{{- if not (or .Values.serviceAccount.create .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.create is false, so serviceAccount.name must say which account the controller has" -}}
{{- end -}}
{{- .Values.serviceAccount.name | default (include "vmcp.name" .) -}}
{{- end -}}

{{/* The Lease that elects the leader: its name may be said in the environment, and the right to it is given by its name. */}}
{{- define "vmcp.lease" -}}
{{- $lease := "vmcp-session-controller" -}}
{{- range .Values.controller.env -}}
{{- if eq .name "VMCP_LEADER_LEASE_NAME" -}}
{{- $lease = required "controller.env sets VMCP_LEADER_LEASE_NAME without a value: the right to that Lease is given by its name, so say it there" .value -}}
{{- end -}}
{{- end -}}
{{- $lease -}}
{{- end -}}

{{- define "vmcp.selector" -}}
app.kubernetes.io/name: vmcp-session-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "vmcp.labels" -}}
{{ include "vmcp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "vmcp.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default ($.Chart.AppVersion | replace "+" "_") }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* The securityContext of all pods of the chart. */}}
{{- define "vmcp.pod.security" -}}
runAsNonRoot: true
{{- with .Values.controller.runAsUser }}
runAsUser: {{ . | int64 }}
runAsGroup: {{ . | int64 }}
fsGroup: {{ . | int64 }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* The Secret with the keys that the leader makes, and the ConfigMap that tells whom to believe. */}}
{{- define "vmcp.keys" -}}{{ include "vmcp.name" . }}-tls{{- end -}}
{{- define "vmcp.bundle" -}}vmcp-session-ca{{- end -}}

{{/* The ClusterTrustBundle that does so for all namespaces; nothing, if there is none. The signer of its name is in the rights. */}}
{{- define "vmcp.trustBundle" -}}
{{- if ne .Values.tls.bundle "configMap" -}}vmcp.dev:session-controller:{{ .Release.Namespace }}{{- end -}}
{{- end -}}

{{/* What the API server asks which pods get an agent, if it does not know it itself; and what it asks for. */}}
{{- define "vmcp.webhook" -}}{{ include "vmcp.name" . }}-webhook{{- end -}}
{{- define "vmcp.agents" -}}{{ include "vmcp.name" . }}-agents{{- end -}}

{{/* Namespaces that have the ConfigMap, besides the operator's own. */}}
{{- define "vmcp.told" -}}
{{- $names := list -}}
{{- if ne .Values.tls.bundle "clusterTrustBundle" -}}
{{- range .Values.agents.namespaces -}}{{- $names = append $names .name -}}{{- end -}}
{{- end -}}
{{- join "," (uniq $names) -}}
{{- end -}}
