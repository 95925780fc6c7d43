"""Who asks, and what he may do: identities, rules, and the file that configures them.

A request's head tells who asks (:mod:`.authentication`). What is found out is a
:class:`.admission.Subject`, which goes along in the job, with the rules of that moment. Admission
(:func:`.admission.admit`) decides by it.
"""
