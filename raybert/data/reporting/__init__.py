"""The report of a run: figures, a pure function of its folder, and the page that shows them.

    facts    all figures, as they stand in report.json
    tallies  what is counted: histograms, bounded counts, rows that are drawn
    answers  one tally a task, fed with the columns of parts
    parts    the run's parts, read column by column
    examples rows that were drawn, read once more with their texts and answers
    times    speed, stages and plan, from the run's history
    figures  drawings, as SVG
    page     the page
"""
