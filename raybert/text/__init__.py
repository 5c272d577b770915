"""Texts become integers, and integers become batches; no torch.

Read in this order: `encoding` is what comes out, `files` and `build` make a tokenizer from a checkpoint's files,
`pieces` cuts huge texts, `framing` puts special tokens around them, `tokenizer` encodes, `windows` slides over
long texts, `batching` packs.
"""
