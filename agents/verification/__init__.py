"""The checks of `tokenrlhf verify` on an installed package: mathematics, environment, learning."""
