{{- define "finetune.selector" -}}
app.kubernetes.io/name: finetune-operator
{{- end }}

{{- define "finetune.labels" -}}
{{ include "finetune.selector" . }}
app.kubernetes.io/part-of: finetune-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "finetune.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- /* Cluster-scoped objects: two namespaced operators in one cluster must not share them. */ -}}
{{- define "finetune.clusterName" -}}
{{- if .Values.watchNamespace -}}
{{ printf "finetune-operator-%s" .Release.Namespace }}
{{- else -}}
finetune-operator
{{- end }}
{{- end }}

{{- define "finetune.subject" -}}
- kind: ServiceAccount
  name: {{ .Values.serviceAccount.name }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- /* Rights on what lies in the namespaces of the jobs: in a Role where one namespace is served. */ -}}
{{- define "finetune.jobRules" -}}
# For lifecycle.ttlSecondsAfterFinished alone.
- apiGroups: [finetuning.dev]
  resources: [finetunejobs]
  verbs: [delete]
- apiGroups: [finetuning.dev]
  resources: [finetunejobs/status]
  verbs: [get, patch]
# For ownerReferences with blockOwnerDeletion, where OwnerReferencesPermissionEnforcement is on (OpenShift).
- apiGroups: [finetuning.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
# No patch and no update: a Job that was written twice would leave Kueue's queue.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [create]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list, patch]
# The group of a job with several nodes, for the scheduler coscheduling alone.
- apiGroups: [scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [create]
# Why a job waits in Kueue's queue. Where no Kueue is, the right is to nothing.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch]
{{- end }}

{{- /* Rights that only a ClusterRole can give: TokenReview has no namespace, nor have profiles and CRDs. */ -}}
{{- define "finetune.clusterRules" -}}
# Who is it that posts progress?
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
# kopf waits for CRDs that are installed later, and notices when they change.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [get, list, watch]
{{- if not .Values.watchNamespace }}
# Which GPUs there are: a LIST of labels every ten minutes. May be left out.
- apiGroups: [""]
  resources: [nodes]
  verbs: [list]
{{- end }}
{{- if .Values.watchNamespace }}
# kopf looks the one namespace up among all of them before it watches it.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
{{- end }}
{{- end }}

{{/* The labels of what the Prometheus operator reads: ours, and those that it selects by. */}}
{{- define "finetune.monitoringLabels" -}}
{{ include "finetune.labels" . }}
{{- with .Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What every pod needs to find the others. */}}
{{- define "finetune.dnsEgress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end }}
