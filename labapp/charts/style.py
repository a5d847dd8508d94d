"""The colours and sizes of all charts; lengths are in points, 1/72 of an inch.

The style is quiet: few colours, safe for the colour-blind and different in brightness, labels at
the marks or a legend with their dashes, units on every axis.
"""

BLUE, DEEP, PALE = "#3f90da", "#1f5f9e", "#b5d6f4"
ORANGE, AMBER, GREY, DARK = "#bd1f01", "#e0a04a", "#b9bec4", "#30343a"
PALETTE = (DEEP, "#ffa90e", "#832db6", "#92dadd", ORANGE, GREY)
"""For things that are told apart by colour: dark and bright by turns, for a print without it."""

BRIGHT = {PALE, AMBER, GREY, "white", "#ffa90e", "#92dadd"}
"""On these, dark text can be read, and on the others white."""

SMALL, TEXT, TITLE = 9.0, 9.5, 11.5
WIDTH, MARGIN = 640.0, 8.0
