"""The Open Inference Protocol V2: tensors, messages and what they mean here; shared by HTTP and gRPC."""
