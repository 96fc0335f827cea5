"""The library behind every command: data, embeddings, entries and evaluation.

Arrows point one way: ``scripts/`` and the model folders import ``ubp``; ``ubp`` knows no model.
"""
