{{- /* Whether the API server has claims, as far as Helm can tell, and they are to be served. */}}
{{- define "kerf.claims" -}}
{{- if and (ne .Values.interface "device-plugin") (.Capabilities.APIVersions.Has "resource.k8s.io/v1") }}true{{ end }}
{{- end }}

{{/*
Checks of opaque configuration in CEL, as validations of a policy. Each takes the list of objects in a
variable, the name that users know them by, and a field. None fails on a value of another type.
*/}}

{{- /* "`a`, `b` or `c`" */}}
{{- define "kerf.words" -}}
{{- $last := sub (len .) 1 | int }}
{{- range $i, $word := . }}
{{- if $i }}{{ if eq $i $last }} or {{ else }}, {{ end }}{{ end }}`{{ $word }}`
{{- end }}
{{- end }}

{{- /* No field but these. */}}
{{- define "kerf.fields" -}}
- expression: >-
    variables.{{ .in }}.all(o, o.all(k, k in {{ toJson .fields }}))
  messageExpression: >-
    'unknown field `' + variables.{{ .in }}.map(o, o.filter(k, !(k in {{ toJson .fields }})))
    .filter(unknown, size(unknown) > 0)[0][0] + '` in {{ .name }}; use {{ include "kerf.words" .fields }}'
{{- end }}

{{- /* An object, if it is there. */}}
{{- define "kerf.object" -}}
- expression: >-
    variables.{{ .in }}.all(o, o[?'{{ .field }}'].orValue(dyn(null)) == null || type(o.{{ .field }}) == map)
  message: {{ .name }}.{{ .field }} must be an object
{{- end }}

{{- /* One of these words, if it is there; it may have to be there. */}}
{{- define "kerf.choice" -}}
- expression: >-
    variables.{{ .in }}.all(o, o[?'{{ .field }}'].orValue(dyn(null)) in {{ toJson .words }}
    {{- if not .required }} || o[?'{{ .field }}'].orValue(dyn(null)) == null{{ end }})
  message: >-
    {{ .name }}.{{ .field }} must be {{ include "kerf.words" .words }}
  messageExpression: >-
    'unknown {{ .field }} `' + variables.{{ .in }}.map(o, o[?'{{ .field }}'].orValue(dyn(null)))
    .filter(word, type(word) == string && !(word in {{ toJson .words }}))[0] + '` in {{ .name }}; use {{ include "kerf.words" .words }}'
{{- end }}

{{- /* True or false, if it is there. */}}
{{- define "kerf.boolean" -}}
- expression: >-
    variables.{{ .in }}.all(o, o[?'{{ .field }}'].orValue(dyn(null)) == null || type(o.{{ .field }}) == bool)
  message: {{ .name }}.{{ .field }} must be true or false
{{- end }}

{{- /* Whether a value is a quantity by the grammar of k8s.io/apimachinery, or not there. */}}
{{- define "kerf.quantity" -}}
{{ . }} == null || type({{ . }}) == int || type({{ . }}) == double || (type({{ . }}) == string && {{ . }}.matches('^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$'))
{{- end }}
