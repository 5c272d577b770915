"""BERT in two forms: modules (`architecture`, everything the reference does) and packed (`packed`, fast inference).

Read `architecture` first, then `encoder`; `loading` brings a checkpoint's numbers in.
"""
