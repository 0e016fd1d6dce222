{{/*
Names are those of the chart of secrets-store-csi-driver, so that a release of
it can be upgraded to this chart in place, and what selects its pods goes on to.
*/}}
{{- define "csi-secrets.name" -}}
{{- default "secrets-store-csi-driver" .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "csi-secrets.fullname" -}}
{{- $name := default "secrets-store-csi-driver" .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "csi-secrets.serviceAccount" -}}
secrets-store-csi-driver
{{- end -}}

{{- define "csi-secrets.labels" -}}
app: {{ include "csi-secrets.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/name: {{ include "csi-secrets.name" . | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "csi-secrets.controllerLabels" -}}
app: {{ include "csi-secrets.name" . }}-controller
app.kubernetes.io/component: controller
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/name: {{ include "csi-secrets.name" . | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Lets an account write Secrets in some namespaces; "*" stands for all.
*/}}
{{- define "csi-secrets.bindSync" -}}
{{- $root := .root -}}
{{- $name := .name -}}
{{- $account := .account -}}
{{- $everywhere := has "*" .namespaces -}}
{{- range ternary (list "*") .namespaces $everywhere }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ ternary "ClusterRoleBinding" "RoleBinding" $everywhere }}
metadata:
  name: {{ $name }}
  {{- if not $everywhere }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "csi-secrets.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: secretprovidersyncing-role
subjects:
  - kind: ServiceAccount
    name: {{ $account }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end -}}

{{- define "csi-secrets.upstreamImage" -}}
{{- if eq .Values.linux.image.repository "registry.k8s.io/csi-secrets-store/driver" }}true{{ end -}}
{{- end -}}

{{/*
The image. Values that were copied whole from secrets-store-csi-driver name its
image, which has other flags: the default is taken in its place.
*/}}
{{- define "csi-secrets.image" -}}
{{- $default := "ghcr.io/csi-secrets/csi-secrets" -}}
{{- with .Values.linux.image -}}
{{- if include "csi-secrets.upstreamImage" $ -}}
{{ $default }}:{{ $.Chart.AppVersion }}
{{- else if .digest -}}
{{ .repository | default $default }}@{{ .digest }}
{{- else -}}
{{ .repository | default $default }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "csi-secrets.metricsPort" -}}
{{- regexFind "[0-9]+$" (default "" .Values.linux.metricsAddr) -}}
{{- end -}}

{{- define "csi-secrets.taintKey" -}}
{{- (.Values.startupTaint).key | default "secrets-store.csi.k8s.io/agent-not-ready" -}}
{{- end -}}

{{/*
One line for each given value that does nothing here. Only given ones are
there: the chart's own values do not have these keys.
*/}}
{{- define "csi-secrets.ignored" -}}
{{- if include "csi-secrets.upstreamImage" . }}
linux.image: {{ .Values.linux.image.repository }} is secrets-store-csi-driver's; {{ include "csi-secrets.image" . }} is used
{{- end }}
{{- if (.Values.windows).enabled }}
windows: there is no driver for Windows nodes, and pods there get no secrets
{{- else if .Values.windows }}
windows: there is no driver for Windows nodes
{{- end }}
{{- if hasKey .Values.linux "registrarImage" }}
linux.registrarImage: the driver registers itself
{{- end }}
{{- if hasKey .Values.linux "registrar" }}
linux.registrar: the driver registers itself
{{- end }}
{{- if hasKey .Values.linux "livenessProbeImage" }}
linux.livenessProbeImage: the driver serves its own /healthz
{{- end }}
{{- if hasKey .Values.linux "livenessProbe" }}
linux.livenessProbe: the driver serves its own /healthz
{{- end }}
{{- if hasKey .Values.linux.crds "image" }}
linux.crds.image: the CRDs come with the driver's image
{{- end }}
{{- if hasKey .Values.livenessProbe "logLevel" }}
livenessProbe.logLevel: the driver serves its own /healthz
{{- end }}
{{- if hasKey .Values.rbac "pspEnabled" }}
rbac.pspEnabled: Kubernetes has no PodSecurityPolicy any more
{{- end }}
{{- if hasKey .Values "filteredWatchSecret" }}
filteredWatchSecret: the driver watches no Secrets
{{- end }}
{{- if hasKey .Values "minimumProviderVersions" }}
minimumProviderVersions: providers are not asked for their version
{{- end }}
{{- end -}}

{{/* What the schema cannot check. */}}
{{- define "csi-secrets.check" -}}
{{- $surge := ((.Values.linux.updateStrategy).rollingUpdate).maxSurge | default 0 | toString -}}
{{- if not (has $surge (list "0" "0%")) -}}
{{- fail "linux.updateStrategy.rollingUpdate.maxSurge must be 0: a node has one state folder, which one driver at a time may use" -}}
{{- end -}}
{{- if and (.Values.podMonitor).enabled (not (include "csi-secrets.metricsPort" .)) -}}
{{- fail "podMonitor.enabled needs linux.metricsAddr, which is empty" -}}
{{- end -}}
{{- if eq (include "csi-secrets.metricsPort" .) (.Values.livenessProbe.port | toString) -}}
{{- fail "linux.metricsAddr and livenessProbe.port must be two ports" -}}
{{- end -}}
{{- end -}}

{{/* Whether the driver may read service accounts: "true" or nothing. Classes of
     aws and gcp need it, which show in the audiences. */}}
{{- define "csi-secrets.readsServiceAccounts" -}}
{{- $wanted := toString .Values.serviceAccountAnnotations -}}
{{- if eq $wanted "auto" -}}
{{- range .Values.tokenRequests -}}
{{- if regexMatch "^sts\\.amazonaws\\.com|\\.svc\\.id\\.goog$|^(https:)?//iam\\.googleapis\\.com/" .audience -}}
{{- $wanted = "true" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $wanted "true" -}}true{{- end -}}
{{- end -}}

{{/* Whether the driver may read nodes, for the region of AWS: "true" or nothing. */}}
{{- define "csi-secrets.readsNodes" -}}
{{- $wanted := toString .Values.nodeLabels -}}
{{- if and (eq $wanted "auto") (not .Values.aws.region) -}}
{{- range .Values.tokenRequests -}}
{{- if regexMatch "^sts\\.amazonaws\\.com|^pods\\.eks\\.amazonaws\\.com" .audience -}}
{{- $wanted = "true" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $wanted "true" -}}true{{- end -}}
{{- end -}}
