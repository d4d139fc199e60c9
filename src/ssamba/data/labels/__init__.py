"""Labels with times: events in the files that people label in, read and written, and the clips that they give.

One module for each format has its reader and its writer; ``formats`` names them and recognises a file by its content;
``recordings`` finds the recording that a label belongs to; ``clips`` cuts training clips.
"""
