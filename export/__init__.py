"""A compressed model directory -> an ONNX package, checked against torch."""
