"""Record the shipped sentences anew, into this folder; needs espeak-ng."""

from pathlib import Path

from zoo.data.synthetic.spoken import write_shipped

write_shipped(Path(__file__).parent)
