"""The loop's frame: resumable steps, checkpoints, several processes, precision, schedules.

What every training needs and no paper claims comes in; the loop itself stays in each paper. May import: the ground."""
