"""The loop's frame: resumable steps, checkpoints, several processes, precision, schedules, speed.

Comes in: what every training needs and no paper claims; the loop itself stays in each paper.
May import: the ground.
"""
