"""What `tokenrlhf verify` checks on an installed package: mathematics, environment, learning."""
