"""Models on disk: sources of tensors, writing, publishing. Every file call goes through `fs`."""
