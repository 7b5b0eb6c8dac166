"""SAM's labels of the points of a prompt; a box is its two corners."""

BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT, NO_POINT = 0, 1, 2, 3, -1
