{{- /* How agents are scraped, given the interval. Series name the pods that hold GPUs: those labels are kept, and the
agent's own pod does not take their place. */}}
{{- define "kerf.scrape" -}}
path: /metrics
interval: {{ . }}
honorLabels: true
relabelings:
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
  - regex: pod|namespace|container|endpoint|service
    action: labeldrop
{{- end }}
