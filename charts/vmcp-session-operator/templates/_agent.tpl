{{- /* What is added to a pod, written once: for the policy it is made an expression (vmcp.cel), the webhook reads it as it is. It is
what Kubernetes takes, but for two kinds of places, which annotations of the pod fill:

  {option: NAME, default: X}   the value of vmcp.dev/agent-NAME, or X; without a default, left out
  {when: NAME, then: X}        X if there is vmcp.dev/agent-NAME; otherwise left out

An option with `number` is a number, one with `port` the number behind its last colon. Pods that say what an option does not take are passed over (vmcp.injection.conditions). */ -}}
{{- define "vmcp.agent.container" -}}
{{- $injection := .Values.injection -}}
{{- $resources := $injection.agent.resources | default dict -}}
name: vmcp-agent
image: {option: image, default: {{ include "vmcp.image" . | quote }}}
imagePullPolicy: {option: image-pull-policy, default: {{ .Values.image.pullPolicy }}}
# With this an init container is a sidecar: it runs as long as the pod, and ends after the others.
restartPolicy: Always
args: [agent]
env:
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: VMCP_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: VMCP_CONTROLLERS, value: "{{ include "vmcp.name" . }}.{{ .Release.Namespace }}.svc:7070"}
  - {name: VMCP_TOKEN_FILE, value: /var/run/secrets/vmcp.dev/token}
  - {name: VMCP_CA_FILE, value: /var/run/secrets/vmcp.dev/ca.crt}
  {{- $defaults := dict "admin-listen" (include "vmcp.agent.admin" .) "log-level" $injection.agent.log.level "log-format" $injection.agent.log.format "lease-upper-bound" (.Values.controller.leaseSeconds | toString) }}
  {{- range include "vmcp.agent.options" . | fromYamlArray }}
  {{- if .variable }}
  {{- $value := dict "option" .name }}
  {{- if hasKey $defaults .name }}
  - {name: {{ .variable }}, value: {{ set $value "default" (get $defaults .name) | toJson }}}
  {{- else }}
  - {when: {{ .name }}, then: {name: {{ .variable }}, value: {{ toJson $value }}}}
  {{- end }}
  {{- end }}
  {{- end }}
  - {when: unix-socket, then: {name: VMCP_AGENT_UNIX_SOCKET, value: /var/run/vmcp/agent.sock}}
  - {when: password-secret, then: {name: VMCP_PASSWORD_FILE, value: /etc/vmcp/password/password}}
  - {when: hash-session-ids-secret, then: {name: VMCP_HASH_SESSION_IDS, value: /etc/vmcp/hash-session-ids/key}}
  {{- with $injection.agent.env }}{{ toYaml . | nindent 2 }}{{ end }}
# By exec: the agent listens on loopback. Clients are served as soon as it lives, whatever it can reach; of use it is when
# the API server or a controller answers. So a pod starts without them, and gets no traffic.
{{- range $probe, $settings := dict "startupProbe" (dict "path" "livez" "period" 1 "failures" 60) "livenessProbe" (dict "path" "livez" "period" 10 "failures" 3) "readinessProbe" (dict "path" "readyz" "period" 5 "failures" 2) }}
{{ $probe }}:
  exec: {command: [{{ $injection.agent.program | quote }}, probe, "http://$(VMCP_ADMIN_LISTEN)/{{ $settings.path }}"]}
  periodSeconds: {{ $settings.period }}
  timeoutSeconds: 6
  failureThreshold: {{ $settings.failures }}
{{- end }}
resources:
  {{- range $which := list "requests" "limits" }}
  {{ $which }}:
    {{- $given := get $resources $which | default dict }}
    {{- range $what := list "cpu" "memory" }}
    {{- $value := dict "option" (printf "%s-%s" $what (trimSuffix "s" $which)) }}
    {{- with get $given $what }}{{ $_ := set $value "default" (toString .) }}{{ end }}
    {{ $what }}: {{ toJson $value }}
    {{- end }}
    {{- with omit $given "cpu" "memory" }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- end }}
{{- if .Values.metrics.podMonitor.create }}
ports:
  - {name: {{ include "vmcp.agent.port" . }}, containerPort: {option: admin-listen, port: true, default: {{ regexFind "[0-9]+$" (include "vmcp.agent.admin" .) }}}}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- $user := dict "option" "run-as-user" "number" true }}
  {{- with $injection.agent.runAsUser }}{{ $_ := set $user "default" . }}{{ end }}
  runAsUser: {{ toJson $user }}
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: vmcp-agent-controllers, mountPath: /var/run/secrets/vmcp.dev, readOnly: true}
  - {name: vmcp-agent-api, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  - {when: unix-socket, then: {name: vmcp-agent-socket, mountPath: /var/run/vmcp}}
  - {when: password-secret, then: {name: vmcp-agent-password, mountPath: /etc/vmcp/password, readOnly: true}}
  - {when: hash-session-ids-secret, then: {name: vmcp-agent-hash-key, mountPath: /etc/vmcp/hash-session-ids, readOnly: true}}
{{- end -}}

{{- /* A volume is added if the pod has none of its name. */ -}}
{{- define "vmcp.agent.volumes" -}}
# For the controllers: who it is, and whom to believe.
- name: vmcp-agent-controllers
  projected:
    sources:
      - serviceAccountToken: {audience: vmcp.dev, path: token, expirationSeconds: 3600}
      - {{ include "vmcp.agent.authorities" . }}
# For the API server, also where the pod's other containers have no token.
- name: vmcp-agent-api
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]}
- {when: unix-socket, then: {name: vmcp-agent-socket, emptyDir: {medium: Memory, sizeLimit: 1Mi}}}
- when: password-secret
  then:
    name: vmcp-agent-password
    secret:
      secretName: {option: password-secret}
      items: [{key: {option: password-key, default: password}, path: password}]
- when: hash-session-ids-secret
  then:
    name: vmcp-agent-hash-key
    secret:
      secretName: {option: hash-session-ids-secret}
      items: [{key: {option: hash-session-ids-key, default: key}, path: key}]
{{- end -}}

{{- /* Where the cluster has ClusterTrustBundles, a namespace need not be listed for its pods to know whom to believe. */ -}}
{{- define "vmcp.agent.authorities" -}}
{{- $served := .Capabilities.APIVersions.Has "certificates.k8s.io/v1/ClusterTrustBundle" -}}
{{- if and (include "vmcp.trustBundle" .) (or $served (eq .Values.tls.bundle "clusterTrustBundle")) -}}
clusterTrustBundle: {name: {{ include "vmcp.trustBundle" . | quote }}, path: ca.crt}
{{- else -}}
configMap: {name: {{ include "vmcp.bundle" . }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end -}}
{{- end -}}

{{- /* Where the agents' admin endpoints are. Prometheus is let in if it is told to come. */ -}}
{{- define "vmcp.agent.admin" -}}
{{- $said := .Values.injection.agent.adminListen -}}
{{- range include "vmcp.agent.options" . | fromYamlArray -}}
{{- if and $said (eq .name "admin-listen") (not (regexMatch .matches $said)) -}}
{{- fail (printf "injection.agent.adminListen is '%s': expected %s" $said .expected) -}}
{{- end -}}
{{- end -}}
{{- $said | default (.Values.metrics.podMonitor.create | ternary ":8079" "127.0.0.1:8079") -}}
{{- end -}}

{{- /* By which Prometheus finds it, if it is told to come. */ -}}
{{- define "vmcp.agent.port" -}}vmcp-metrics{{- end -}}

{{- /* Both, as the webhook reads them. */ -}}
{{- define "vmcp.agent.definition" -}}
container:
  {{- include "vmcp.agent.container" . | nindent 2 }}
volumes:
  {{- include "vmcp.agent.volumes" . | nindent 2 }}
{{- end -}}

{{- define "vmcp.agent.options" -}}{{ .Files.Get "files/agent-options.yaml" }}{{- end -}}

{{- /* Which way the agent is added: policy, webhook or none. */ -}}
{{- define "vmcp.injection" -}}
{{- if ne .Values.injection.mode "auto" -}}{{ .Values.injection.mode }}
{{- else if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}policy
{{- else -}}webhook
{{- end -}}
{{- end -}}

{{- /* A definition as an expression of CEL: {node: the definition, depth: how far in}. Lists and maps hold values of exactly one type there;
so, where they are not all texts, each is made dyn. What may be left out is an optional, which its list or map unfolds; `sure` is an
option that is known to be there. */ -}}
{{- define "vmcp.cel" -}}
{{- $node := .node -}}
{{- $line := printf "\n%s" (repeat (int .depth) "  ") -}}
{{- $deeper := add1 .depth -}}
{{- if and (kindIs "map" $node) (or (hasKey $node "option") (hasKey $node "when")) -}}
  {{- include "vmcp.cel.place" . -}}
{{- else if kindIs "map" $node -}}
  {{- $plain := include "vmcp.cel.plain" (values $node) -}}
  {
  {{- range $key, $value := $node }}
  {{- $line }}  {{ include "vmcp.cel.optional" (dict "node" $value "sure" $.sure) }}{{ toJson $key }}: {{ include "vmcp.cel.item" (dict "node" $value "depth" $deeper "plain" $plain "sure" $.sure) }},
  {{- end }}
  {{- $line }}}
{{- else if kindIs "slice" $node -}}
  {{- $plain := include "vmcp.cel.plain" $node -}}
  [
  {{- range $node }}
  {{- $line }}  {{ include "vmcp.cel.optional" (dict "node" . "sure" $.sure) }}{{ include "vmcp.cel.item" (dict "node" . "depth" $deeper "plain" $plain "sure" $.sure) }},
  {{- end }}
  {{- $line }}]
{{- else -}}
  {{- toJson $node -}}
{{- end -}}
{{- end -}}

{{- define "vmcp.cel.place" -}}
{{- $node := .node -}}
{{- $name := $node.option | default $node.when -}}
{{- $said := printf "variables.said[%s]" (toJson $name) -}}
{{- $there := printf "%s in variables.said" (toJson $name) -}}
{{- if $node.number }}{{ $said = printf "int(%s)" $said }}{{ end -}}
{{- if $node.port }}{{ $said = printf "int(%s.find('[0-9]+$'))" $said }}{{ end -}}
{{- if and (hasKey $node "option") (eq $name (.sure | default "")) -}}
  {{ $said }}
{{- else if hasKey $node "when" -}}
  ({{ $there }} ? optional.of(dyn({{ include "vmcp.cel" (dict "node" $node.then "depth" .depth "sure" $name) }})) : optional.none())
{{- else if hasKey $node "default" -}}
  {{ $there }} ? {{ $said }} : {{ toJson $node.default }}
{{- else -}}
  ({{ $there }} ? optional.of(dyn({{ $said }})) : optional.none())
{{- end -}}
{{- end -}}

{{- define "vmcp.cel.item" -}}
{{- if or .plain (include "vmcp.cel.optional" .) -}}
{{ include "vmcp.cel" . }}
{{- else -}}
dyn({{ include "vmcp.cel" . }})
{{- end -}}
{{- end -}}

{{- define "vmcp.cel.optional" -}}
{{- $node := .node -}}
{{- if kindIs "map" $node -}}
  {{- $open := and (hasKey $node "option") (not (hasKey $node "default")) (ne $node.option (.sure | default "")) -}}
  {{- if or (hasKey $node "when") $open }}?{{ end -}}
{{- end -}}
{{- end -}}

{{- /* Whether all are texts, and none is to be left out. */ -}}
{{- define "vmcp.cel.plain" -}}
{{- $plain := true -}}
{{- range . }}{{ if not (kindIs "string" .) }}{{ $plain = false }}{{ end }}{{ end -}}
{{- if $plain }}yes{{ end -}}
{{- end -}}
