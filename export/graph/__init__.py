"""ONNX graphs: write, fuse, convert to fp16, bf16 and int8, and check them."""
