"""Adaptive attention spans (Sukhbaatar et al., 2019)."""

from zoo.techniques.adaptive_span.technique import AdaptiveSpan, clamp_spans, span_loss, spans_of

__all__ = ["AdaptiveSpan", "clamp_spans", "span_loss", "spans_of"]
