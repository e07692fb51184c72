"""ONNX graphs: written, fused, lowered to fp16, bf16 and int8, checked."""
