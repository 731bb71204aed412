"""Convolutions: of images, and of long sequences."""
