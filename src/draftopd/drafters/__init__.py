"""One file per drafter; they do not import each other, but for one that extends another."""
