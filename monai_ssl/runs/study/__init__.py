"""Studies: many trainings that answer one question, planned, run at once, resumed, collected.

================  ==================================================================================================
module            what it holds
================  ==================================================================================================
``compare``       the function behind ``monai-ssl compare``
``settings``      what a study file may say
``cases``         which scans each run learns from: numbers of labels, folds, random splits, pools of controls
``plan``          rows of the tables and the trainings behind them; what two rows share is trained once
``identity``      what makes two trainings of a study the same
``tasks``         one training with its scores: arguments, and what its folder says of it
``work``          the process that trains and scores one of them
``local``         several at once on this machine
``ray_cluster``   on the machines of a Ray cluster
``slurm``         as an array of a SLURM cluster
``progress``      what is to be seen meanwhile
``probe``         how long it will take
``collect``       tables and report
================  ==================================================================================================
"""
