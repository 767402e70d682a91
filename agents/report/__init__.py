"""`tokenrlhf report`: a run, or several beside each other, as one page that opens from disk.

- `config.py`: the settings; `command.py`: the command.
- `run_files.py`: what a run has left behind, finished or not; `token_tables.py`: which of its
  token tables fit into a page.
- `curves.py` `series.py` `charts.py`: numbers over the training, means over seeds, the charts of
  the page.
- `reward_files.py` `reward_charts.py` `reward_section.py`: what is known of the reward: reports of
  reward models, audits, alarms; its charts; its words and tables.
- `verdict.py` `rules.py`: what a run has come to, by rules that the page states; `samples.py`:
  responses.
- `embedding.py`: data inside of a page, where nothing of it can act; `page.py`: the page.
- `figures.py`: figures for papers.
- `page_parts/`: the template, the style and the script, as they are put into the page.
"""
