"""Screening: variants of the teacher ranked by how far their credit agrees with a ground truth, without training."""
