"""The controlled comparison of routings: the same seeds, data order, noise and steps for every arm.

`config` says what is compared, `jobs` shares the work out, `training` and `measuring` do one job, `timing` measures
cost apart from them; `gather`, `statistics` and `claims` turn figures into verdicts, `report` and `plots` show them.
May import evaluation and what stands below it.
"""
