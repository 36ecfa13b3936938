"""Knowledge as typed inputs: triples, lexicons of entities, and where their mentions stand in a
text. Imports no torch.
"""
