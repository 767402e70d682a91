"""`tokenrlhf data inspect`: what a file of prompts, pairs or examples was understood to hold.

- `config`: its settings; `command`: reads the file and measures it; `measures`: what is counted of
  prompts, pairs and examples; `lengths`: in tokens or characters; `seams`: where prompt and
  response meet; `view`: the tables.
"""
