"""SSAMBA and SSAST for transformers in plain torch: modules that are copied into a model's folder.

They import torch, numpy and transformers alone, so that ``trust_remote_code=True`` loads the folder where ssamba is not
installed. ``ssamba.inference.hf`` derives its classes from these and puts the fast encoder in.
"""
