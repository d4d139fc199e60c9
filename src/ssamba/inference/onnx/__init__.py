"""ONNX export: the graph of an encoder, written node by node with standard operators alone.

``ssamba.export_onnx`` is the way in. Nothing here is imported before it is called.
"""
