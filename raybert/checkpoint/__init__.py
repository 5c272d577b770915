"""A folder or hub id becomes files, a configuration, tensor headers and digests, without torch.

Read in this order: `hub` finds the folder, `config` and `sentence` read its settings, `weights` indexes its
tensors (`foreign` converts other frameworks' first), `names` says what they are called, `folder` puts it together,
`digest` says whether two are the same.
"""
