"""From the records of a sweep to its frontier, figures, summary and recommendation.

Reads records only: no torch, no attack, no defence, no store. Import from the modules, so that a
command pays for the drawing library only when it draws::

    from privguard.reporting.frontier import frontier_rows     # records -> rows of frontier.csv
    from privguard.reporting.recommendation import recommend   # rows -> the level to deploy
    from privguard.reporting.report import write_report        # records -> a directory of results
"""
