"""What crosses a stage boundary: frozen records and the settings tree. No tensors."""
