"""The controlled comparison of routings: every arm has the same seeds, data order, noise and steps.

`config` defines what is compared, `jobs` distributes the work, `training` and `measuring` do one job, and `timing`
measures cost separately. `gather`, `statistics` and `claims` turn values into verdicts; `report` and `plots` show them.
May import evaluation and what stands below it.
"""
